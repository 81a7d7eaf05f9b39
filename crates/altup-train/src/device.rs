//! The devices that a model runs on, by the name of their backend. No other file builds one.

// Burn marks the two backends that it will drop, ndarray and libtorch, as deprecated; while it ships
// them they are supported here.
#![allow(deprecated)]

use burn::tensor::Device;
use std::fmt;
use std::str::FromStr;

/// Which device to run on: `flex`, `ndarray`, `wgpu`, `vulkan`, `tch` or `cuda`, for the last four
/// with an index where there are several devices (`cuda:1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    backend: Backend,
    index: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Flex,
    NdArray,
    Wgpu,
    Vulkan,
    Tch,
    Cuda,
}

const BACKENDS: [Backend; 6] =
    [Backend::Flex, Backend::NdArray, Backend::Wgpu, Backend::Vulkan, Backend::Tch, Backend::Cuda];

/// A device that can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such backend.
    #[error(
        "there is no backend {0:?}; the backends are flex, ndarray, wgpu, vulkan, tch and cuda"
    )]
    Unknown(String),
    /// What follows the colon is not a number.
    #[error("the device in {0:?} must be a number, as in cuda:1")]
    Index(String),
    /// The backend has one device only.
    #[error("{0} has one device only and takes no index")]
    SingleDevice(&'static str),
    /// The backend is not compiled in.
    #[error(
        "the backend {backend} is not compiled in; build with `--features {feature}`, as in \
         `cargo run --release --features {feature} -- …`"
    )]
    NotCompiled {
        /// The backend.
        backend: &'static str,
        /// The cargo feature that has it.
        feature: &'static str,
    },
}

impl Backend {
    /// Its name, which is also that of its cargo feature.
    fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Tch => "tch",
            Self::Cuda => "cuda",
        }
    }

    fn has_one_device(self) -> bool {
        matches!(self, Self::Flex | Self::NdArray)
    }
}

impl Default for DeviceName {
    fn default() -> Self {
        Self { backend: Backend::Flex, index: None }
    }
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (name, index) = match text.split_once(':') {
            None => (text, None),
            Some((name, index)) => {
                let index = index.parse().map_err(|_| DeviceError::Index(text.to_owned()))?;
                (name, Some(index))
            }
        };
        let backend = BACKENDS
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| DeviceError::Unknown(name.to_owned()))?;
        if index.is_some() && backend.has_one_device() {
            return Err(DeviceError::SingleDevice(backend.name()));
        }
        Ok(Self { backend, index })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.name())?;
        match self.index {
            Some(index) => write!(f, ":{index}"),
            None => Ok(()),
        }
    }
}

impl DeviceName {
    /// The device.
    ///
    /// # Errors
    ///
    /// If its backend is not compiled in.
    pub fn open(&self) -> Result<Device, DeviceError> {
        match self.backend {
            #[cfg(feature = "flex")]
            Backend::Flex => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            Backend::NdArray => Ok(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => Ok(Device::wgpu(gpu_kind(self.index))),
            #[cfg(feature = "vulkan")]
            Backend::Vulkan => Ok(Device::vulkan(gpu_kind(self.index))),
            #[cfg(feature = "tch")]
            Backend::Tch => Ok(match self.index {
                Some(index) => Device::libtorch_cuda(index),
                None => Device::libtorch(),
            }),
            #[cfg(feature = "cuda")]
            Backend::Cuda => Ok(Device::cuda(self.index.unwrap_or(0))),
            #[allow(unreachable_patterns)] // with every backend compiled in
            backend => {
                Err(DeviceError::NotCompiled { backend: backend.name(), feature: backend.name() })
            }
        }
    }
}

#[cfg(feature = "wgpu")]
fn gpu_kind(index: Option<usize>) -> burn::tensor::DeviceKind {
    use burn::tensor::DeviceKind;
    index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["flex", "ndarray", "wgpu", "wgpu:1", "vulkan:0", "tch", "cuda:2"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        let error = |name: &str| name.parse::<DeviceName>().unwrap_err().to_string();
        assert!(error("candle").contains("flex, ndarray, wgpu"));
        assert!(error("cuda:x").contains("must be a number"));
        assert!(error("flex:1").contains("one device only"));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        let error = "cuda:0".parse::<DeviceName>().unwrap().open().unwrap_err();
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
