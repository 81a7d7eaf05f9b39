//! One set of cases on every backend that is compiled in, against golden values from outside this code:
//! AltUp's operations, every model variant's outputs, loss, gradients, one optimizer step and greedy
//! tokens.
//!
//! A backend that is compiled in must run: one whose driver or library is missing fails here.

mod backends;
mod models;
mod operations;
#[path = "../../../altup-models/tests/support/mod.rs"]
mod support;

/// The cases on one backend after the other, each a test of its own.
macro_rules! on_each_backend {
    ($($backend:ident: $feature:literal,)*) => { $(
        #[cfg(feature = $feature)]
        mod $backend {
            use crate::{backends, models, operations, support};

            fn subject() -> backends::Subject {
                backends::Subject::new(stringify!($backend))
            }

            #[test]
            fn altup_and_its_gradients() {
                operations::altup_and_its_gradients(&subject());
            }

            #[test]
            fn the_update_at_any_shape() {
                operations::the_update_at_any_shape(&subject());
            }

            #[test]
            fn sequence_altup_and_its_gradients() {
                operations::sequence_altup_and_its_gradients(&subject());
            }

            #[test]
            fn reduced_sequences() {
                operations::reduced_sequences(&subject());
            }

            #[test]
            fn outputs_loss_gradients_and_an_optimizer_step() {
                let cases = support::CASES;
                models::outputs_loss_gradients_and_an_optimizer_step(&subject(), cases);
            }

            #[test]
            fn losses_in_bf16() {
                models::losses_in_bf16(&subject());
            }

            #[test]
            fn the_same_from_run_to_run() {
                operations::the_same_from_run_to_run(&subject());
            }

            #[test]
            fn a_combination_by_token_and_its_gradients() {
                operations::a_combination_by_token_and_its_gradients(&subject());
            }

            #[test]
            fn cross_entropy_with_smoothing_and_z_loss() {
                operations::cross_entropy_with_smoothing_and_z_loss(&subject());
            }

            #[test]
            fn masks_that_hide_whole_rows() {
                models::masks_that_hide_whole_rows(&subject());
            }

            #[test]
            fn the_routers_losses_and_their_gradients() {
                models::the_routers_losses_and_their_gradients(&subject());
            }

            #[test]
            fn greedy_tokens() {
                models::greedy_tokens(&subject());
            }
        }
    )* };
}

on_each_backend! {
    flex: "flex",
    ndarray: "ndarray",
    tch: "tch",
    wgpu: "wgpu",
    vulkan: "vulkan",
    cuda: "cuda",
}
