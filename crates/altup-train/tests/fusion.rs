//! Every variant of T5 on wgpu while Burn fuses what goes element by element into kernels of its own making, against golden
//! values from outside this code.
//!
//! On a driver in software each such kernel takes seconds to compile. The other tests of a build with `fusion` therefore
//! run with `BURN_FUSION_MAX_EXPLORATIONS=0`, by which Burn fuses nothing.

#[allow(dead_code)] // A part of what the conformance tests use.
#[path = "conformance/backends.rs"]
mod backends;
#[allow(dead_code)] // As above.
#[path = "conformance/models.rs"]
mod models;
#[path = "../../altup-models/tests/support/mod.rs"]
mod support;

use altup_backend::cube::launches;

#[test]
fn outputs_loss_gradients_and_an_optimizer_step() {
    let subject = backends::Subject::new("wgpu");
    let run = || models::outputs_loss_gradients_and_an_optimizer_step(&subject, support::CASES);
    let (_, launched) = launches(run);
    let fused = launched.iter().filter(|kernel| kernel.contains("burn_cubecl_fusion")).count();
    assert!(fused > 0, "nothing was fused: {launched:#?}");
}
