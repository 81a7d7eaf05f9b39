//! What a device is.

// Burn marks libtorch's backend, which it will drop, as deprecated.
#![allow(deprecated)]

#[cfg(any(feature = "cube", feature = "tch"))]
use burn::backend::DispatchDevice;
#[cfg(feature = "tch")]
use burn::backend::libtorch::LibTorchDevice;
use burn::tensor::Device;

/// Whether a device is a GPU, or a driver that computes as one.
#[cfg(any(feature = "cube", feature = "tch"))]
pub fn is_gpu(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(device) => *device != LibTorchDevice::Cpu,
        _ => false,
    }
}

/// Whether operations run as our kernels on a device: on a GPU through CubeCL.
pub fn has_kernels(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Cube(_));
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// Whether a device is a GPU: none is, of the backends that are compiled in.
#[cfg(not(any(feature = "cube", feature = "tch")))]
pub fn is_gpu(_device: &Device) -> bool {
    false
}
