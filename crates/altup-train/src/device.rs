//! The devices that a model runs on, by the name of their backend. No other file builds one.

// Burn marks the two backends that it will drop, ndarray and libtorch, as deprecated; while it ships
// them they are supported here.
#![allow(deprecated)]

#[cfg(feature = "cube")]
use burn::backend::DispatchDevice;
use burn::tensor::Device;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Which device to run on: `flex`, `ndarray`, `wgpu`, `vulkan`, `tch` or `cuda`, for all but the first
/// two with an index where there are several devices (`cuda:1`; `tch:0` is libtorch's first GPU).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    backend: Backend,
    index: Option<usize>,
}

/// A backend of Burn that this crate can be built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Burn's own CPU backend: SIMD and threads, no other library.
    Flex,
    /// The CPU through the crate ndarray.
    NdArray,
    /// A GPU through WebGPU's shading language, by the graphics interface that wgpu picks.
    Wgpu,
    /// A GPU through Vulkan's SPIR-V.
    Vulkan,
    /// PyTorch's C++ library, on the CPU or on NVIDIA GPUs.
    Tch,
    /// NVIDIA GPUs through CUDA.
    Cuda,
}

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
        "the backend {0} is not compiled in; build with `--features {0}`, as in \
         `cargo run --release --features {0} -- …`"
    )]
    NotCompiled(&'static str),
    /// The machine has no such device.
    #[error("there is no device {name}: {found}. {needs}")]
    NotFound {
        /// The device asked for.
        name: String,
        /// What there is instead.
        found: String,
        /// What the backend needs.
        needs: &'static str,
    },
    /// CUDA's library of functions is missing.
    #[error(
        "there is no nvvm/libdevice/{LIBDEVICE}, which kernels for CUDA are linked with, in {looked_in}. It is part of the \
         CUDA toolkit, and of PyTorch's triton: set CUDA_PATH to a folder that has it under this path"
    )]
    NoLibdevice {
        /// The folders that it may be in.
        looked_in: String,
    },
}

impl Backend {
    /// All of them, the CPU's first.
    pub const ALL: [Self; 6] =
        [Self::Flex, Self::NdArray, Self::Tch, Self::Wgpu, Self::Vulkan, Self::Cuda];

    /// Its name, which is also that of its cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Tch => "tch",
            Self::Cuda => "cuda",
        }
    }

    /// Whether this build has it.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Tch => cfg!(feature = "tch"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// What a machine must have to run it.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Flex | Self::NdArray => "It needs nothing but the CPU",
            Self::Wgpu => {
                "It needs a GPU driver with Vulkan, Metal or Direct3D 12 (Debian without a GPU: \
                 `apt-get install mesa-vulkan-drivers`, in software and slow)"
            }
            Self::Vulkan => {
                "It needs a GPU whose vendor's Vulkan driver is installed (Debian, AMD and Intel: \
                 `apt-get install mesa-vulkan-drivers`); Mesa's software driver can't run it: use wgpu"
            }
            Self::Tch => {
                "It needs libtorch 2.9.0: `scripts/libtorch install`, then \
                 `scripts/libtorch cargo run --release --features tch -- …`; with an index, an NVIDIA \
                 driver too"
            }
            Self::Cuda => {
                "It needs an NVIDIA GPU with its driver, and libdevice.10.bc of the CUDA toolkit"
            }
        }
    }

    /// Whether finding its devices runs code of a driver, which may crash the process.
    pub fn has_driver(self) -> bool {
        matches!(self, Self::Wgpu | Self::Vulkan | Self::Cuda)
    }

    fn has_one_device(self) -> bool {
        matches!(self, Self::Flex | Self::NdArray)
    }

    /// The names of its devices on this machine; none if it is not compiled in.
    pub fn devices(self) -> Vec<DeviceName> {
        let name = |index| DeviceName { backend: self, index };
        if self.has_one_device() && self.is_compiled() {
            return vec![name(None)];
        }
        let indexed = (0..self.indexed_devices().len()).map(|index| name(Some(index)));
        // Libtorch's indices are GPUs; its CPU is always there.
        let cpu = (self == Self::Tch && self.is_compiled()).then(|| name(None));
        cpu.into_iter().chain(indexed).collect()
    }

    fn indexed_devices(self) -> Vec<Device> {
        match self {
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec(),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec(),
            #[cfg(feature = "tch")]
            Self::Tch => Device::enumerate(burn::tensor::DeviceType::LibTorch).into_vec(),
            #[cfg(feature = "cuda")]
            Self::Cuda => Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec(),
            _ => Vec::new(),
        }
    }
}

impl Default for DeviceName {
    fn default() -> Self {
        Self { backend: Backend::Flex, index: None }
    }
}

/// The backend's device that it takes without an index.
impl From<Backend> for DeviceName {
    fn from(backend: Backend) -> Self {
        Self { backend, index: None }
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
        let backend = Backend::ALL
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
    /// The backend.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The device of one of several replicas on a machine, which all are given this name: that of its number there, where
    /// the backend has GPUs and the name has no index.
    pub fn of_replica(&self, local_rank: usize) -> Self {
        match self.index {
            None if self.backend.has_driver() => Self { index: Some(local_rank), ..self.clone() },
            _ => self.clone(),
        }
    }

    /// The device: without an index libtorch's CPU, and the GPU that wgpu prefers.
    ///
    /// A driver that crashes takes the process with it: the command line tries a device in a process
    /// of its own first.
    ///
    /// # Errors
    ///
    /// If the backend is not compiled in, or if the machine has no such device. There is no fallback
    /// to another one.
    pub fn open(&self) -> Result<Device, DeviceError> {
        let backend = self.backend;
        if !backend.is_compiled() {
            return Err(DeviceError::NotCompiled(backend.name()));
        }
        match backend {
            #[cfg(feature = "flex")]
            Backend::Flex => return Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            Backend::NdArray => return Ok(Device::ndarray()),
            #[cfg(feature = "tch")]
            Backend::Tch if self.index.is_none() => return Ok(Device::libtorch()),
            _ => {}
        }
        let devices = backend.indexed_devices();
        let count = devices.len();
        let device = match self.index {
            #[cfg(feature = "wgpu")]
            None if count > 0 && backend == Backend::Wgpu => {
                Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))
            }
            #[cfg(feature = "vulkan")]
            None if count > 0 && backend == Backend::Vulkan => {
                Some(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice))
            }
            index => devices.into_iter().nth(index.unwrap_or(0)),
        };
        if backend == Backend::Cuda && device.is_some() {
            check_libdevice(std::env::var_os("CUDA_PATH").as_deref(), &CUDA_ROOTS)?;
        }
        device.ok_or_else(|| DeviceError::NotFound {
            name: self.to_string(),
            found: match count {
                0 => format!("{} finds none on this machine", backend.name()),
                1 => format!("{} finds one, {}:0", backend.name(), backend.name()),
                _ => format!("{0} finds {count}, {0}:0 to {0}:{1}", backend.name(), count - 1),
            },
            needs: backend.needs(),
        })
    }
}

/// CUDA's functions such as exp, as LLVM's bitcode.
const LIBDEVICE: &str = "libdevice.10.bc";

/// Where cubecl-llvm (0.11.3, `nvptx/libdevice.rs`) looks for the toolkit if `CUDA_PATH` is not set.
const CUDA_ROOTS: [&str; 4] = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"];

/// CubeCL finds out that it is missing when a kernel is compiled that needs it, in the middle of a step.
fn check_libdevice(cuda_path: Option<&OsStr>, roots: &[&str]) -> Result<(), DeviceError> {
    let folders: Vec<&Path> = match cuda_path {
        Some(folder) => vec![Path::new(folder)],
        None => roots.iter().map(Path::new).collect(),
    };
    let has = |folder: &&Path| folder.join("nvvm/libdevice").join(LIBDEVICE).is_file();
    match folders.iter().any(has) {
        true => Ok(()),
        false => {
            let names: Vec<String> =
                folders.iter().map(|folder| folder.display().to_string()).collect();
            Err(DeviceError::NoLibdevice { looked_in: names.join(", ") })
        }
    }
}

/// A device to count and to initialize on: the CPU, if a backend for it is compiled in.
///
/// Burn's own default is the first GPU backend that is compiled in, driver or not.
pub fn cpu() -> Device {
    let names = [Backend::Flex, Backend::NdArray, Backend::Tch];
    let backend = names.into_iter().find(|backend| backend.is_compiled());
    backend.and_then(|backend| DeviceName::from(backend).open().ok()).unwrap_or_default()
}

/// The bytes that a GPU can hold, where its driver tells.
pub fn gpu_memory(device: &Device) -> Option<u64> {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => device.client().properties().memory.max_memory(),
        _ => None,
    }
}

/// What a device calls itself, where its backend tells: the GPU or driver. Opens the device.
pub fn hardware_name(device: &Device) -> Option<String> {
    #[cfg(feature = "cube")]
    return device.identity().map(|identity| identity.name);
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        None
    }
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

    #[test]
    fn each_replica_has_a_gpu_of_its_own() {
        let of_replica = |name: &str| name.parse::<DeviceName>().unwrap().of_replica(2).to_string();
        assert_eq!(["wgpu", "cuda"].map(of_replica), ["wgpu:2", "cuda:2"]);
        assert_eq!(["flex", "tch", "wgpu:0"].map(of_replica), ["flex", "tch", "wgpu:0"]);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        let error = "cuda:0".parse::<DeviceName>().unwrap().open().unwrap_err();
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }

    #[test]
    fn the_toolkits_library_is_looked_for_where_cubecl_does() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let error = check_libdevice(None, &["/nowhere", root]).unwrap_err().to_string();
        let expected = format!("in /nowhere, {root}. It is part of");
        assert!(error.contains(&expected) && error.contains("libdevice.10.bc"), "{error}");
        std::fs::create_dir_all(folder.path().join("nvvm/libdevice")).unwrap();
        std::fs::write(folder.path().join("nvvm/libdevice/libdevice.10.bc"), "").unwrap();
        assert_eq!(check_libdevice(None, &["/nowhere", root]), Ok(()));
        assert_eq!(check_libdevice(Some(root.as_ref()), &[]), Ok(()));
        assert!(check_libdevice(Some("/nowhere".as_ref()), &[root]).is_err());
    }

    #[cfg(feature = "tch")]
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = "tch:99".parse::<DeviceName>().unwrap().open().unwrap_err().to_string();
        assert!(error.starts_with("there is no device tch:99: tch finds"), "{error}");
    }
}
