use altup_train::device::DeviceName;
use burn::tensor::Device;

/// A backend under test.
pub(crate) struct Subject {
    pub(crate) device: Device,
    /// The largest difference from a golden value, relative to the largest value of its tensor.
    pub(crate) tolerance: f32,
}

impl Subject {
    pub(crate) fn new(backend: &str) -> Self {
        // The name of another device than the first one, as `vulkan:1`.
        let named = std::env::var("ALTUP_TEST_DEVICE").ok();
        let named = named.filter(|name| name.split(':').next() == Some(backend));
        let name: DeviceName = named.as_deref().unwrap_or(backend).parse().unwrap();
        let device = name.open().unwrap_or_else(|error| panic!("{error}"));
        let tolerance = match backend {
            // Every backend computes in f32, as the reference does, and sums in an order of its own.
            // Over these sizes two of them are 1e-5 apart at most; an error in a formula shows from
            // 1e-4 on.
            "flex" | "ndarray" | "tch" => 5e-5,
            // A GPU's exp, tanh and division may be off by several units in the last place, where a
            // CPU's are rounded rightly.
            "wgpu" | "vulkan" | "cuda" => 1e-4,
            _ => panic!("no tolerance is stated for {backend}"),
        };
        Self { device, tolerance }
    }

    pub(crate) fn autodiff(&self) -> Device {
        self.device.clone().autodiff()
    }

    #[track_caller]
    pub(crate) fn assert_close(&self, what: &str, found: &[f32], expected: &[f32]) {
        crate::support::assert_close_within(self.tolerance, what, found, expected);
    }
}
