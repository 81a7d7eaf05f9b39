/// Declares operations on every backend of Burn that this workspace supports.
///
/// The trait's methods are the operations. Each has a body that serves every backend: it runs loops for the CPU if
/// [`HostTensors::on_host`](crate::HostTensors::on_host) allows it, and primitive operations otherwise.
///
/// The macro implements the trait for each backend that the calling crate's cargo features name, and for Burn's
/// `Dispatch`, which tensors call. The caller implements it for `Autodiff`, with a backward pass of its own (see
/// [`record`](crate::record)), or with an empty body, which records the primitive operations.
///
/// With `gpu_kernels` the caller also implements the trait for `burn_cubecl::CubeBackend`. Every method then says in
/// `#[fusion(…)]` which type and shape its outputs have, for Burn's fusion (see Burn's `backend_extension`).
///
/// ```ignore
/// altup_backend::operations! {
///     /// x / √(mean(x²) + ε) · γ
///     pub trait RmsNormBackend {
///         fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
///             match Self::on_host([&x, &gamma]) {
///                 true => cpu::rms_norm::<Self>(x, gamma, epsilon),
///                 false => primitive::rms_norm::<Self>(x, gamma, epsilon),
///             }
///         }
///     }
/// }
/// ```
#[macro_export]
macro_rules! operations {
    ($(#[$attribute:meta])* pub trait $name:ident $(: $bound:path)? { $($methods:tt)* }) => {
        // Burn marks ndarray and libtorch as deprecated; while it ships them, they are supported.
        #[allow(deprecated)]
        mod declaration {
            use super::*;

            #[::burn::backend::backend_extension(
                Flex: cfg(feature = "flex"),
                NdArray: cfg(feature = "ndarray"),
                LibTorch: cfg(feature = "tch"),
                Cube: cfg(any(feature = "wgpu", feature = "cuda")),
                Autodiff
            )]
            $(#[$attribute])*
            pub trait $name: $crate::HostTensors $(+ $bound)? { $($methods)* }

            $crate::on_cpu_backends!($name);

            #[cfg(feature = "wgpu")]
            impl $name for ::burn::backend::Wgpu {}
            // Both are one type.
            #[cfg(all(feature = "cuda", not(feature = "wgpu")))]
            impl $name for ::burn::backend::Cuda {}
        }
        pub use declaration::$name;
    };
    (gpu_kernels $(#[$attribute:meta])* pub trait $name:ident $(: $bound:path)? { $($methods:tt)* }) => {
        #[allow(deprecated)] // As above.
        mod declaration {
            use super::*;

            #[::burn::backend::backend_extension(
                Flex: cfg(feature = "flex"),
                NdArray: cfg(feature = "ndarray"),
                LibTorch: cfg(feature = "tch"),
                Cube: cfg(any(feature = "wgpu", feature = "cuda")),
                Autodiff,
                Fusion: cfg(feature = "fusion")
            )]
            $(#[$attribute])*
            pub trait $name: $crate::HostTensors $(+ $bound)? { $($methods)* }

            $crate::on_cpu_backends!($name);
        }
        pub use declaration::$name;
    };
}

/// Implements a trait whose methods all have bodies for the backends on a CPU.
#[doc(hidden)]
#[macro_export]
macro_rules! on_cpu_backends {
    ($name:ident) => {
        #[cfg(feature = "flex")]
        impl $name for ::burn::backend::Flex {}
        #[cfg(feature = "ndarray")]
        impl $name for ::burn::backend::NdArray {}
        #[cfg(feature = "tch")]
        impl $name for ::burn::backend::LibTorch {}
    };
}
