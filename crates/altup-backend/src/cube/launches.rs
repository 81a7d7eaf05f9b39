//! The kernels that a piece of code launches: ours, Burn's, and those of its products.

use cubecl::logging::{LaunchObservation, LaunchObserver};
use std::sync::{Arc, Mutex, PoisonError};

/// CubeCL has one place for who watches, and guards that must end in the order of their beginnings.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs something, and gives the kernels that the whole process launched meanwhile, by the names of their types and in
/// their order. Copies between host and device are no kernels. A second call waits for the first.
///
/// Under Burn's fusion kernels are launched when somebody waits for them: let `run` end with a synchronisation of the
/// device.
pub fn launches<T>(run: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    // What it guards are no data that a panic could leave half done.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let names = Arc::new(Names::default());
    let watching = LaunchObservation::new(names.clone());
    let result = run();
    drop(watching);
    (result, std::mem::take(&mut names.lock()))
}

#[derive(Default)]
struct Names(Mutex<Vec<&'static str>>);

impl Names {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaunchObserver for Names {
    fn launched(&self, kernel: &'static str) {
        self.lock().push(kernel);
    }
}
