//! Layers of which the backward pass computes the activations anew.

use altup_backend::recomputed;
use burn::module::Module;
use burn::tensor::Tensor;
use std::sync::{Arc, Mutex, PoisonError};

use crate::mixture_of_experts::{LayerContext, LayerRouting};

/// Runs a layer by `run`. If it `recomputes`, the tape keeps its inputs and parameters alone, and the backward pass runs
/// it again; how its experts routed the tokens is logged once.
pub(crate) fn run_layer<M: Module + 'static, const N: usize>(
    recomputes: bool,
    block: &M,
    inputs: [Tensor<4>; N],
    mut context: LayerContext<'_>,
    run: impl Fn(&M, [Tensor<4>; N], &mut LayerContext<'_>) -> Tensor<4> + Send + 'static,
) -> Tensor<4> {
    if !recomputes {
        return run(block, inputs, &mut context);
    }
    let LayerContext { noise, stack, layer, real, log } = context;
    let real = real.cloned();
    let is_asked = log.is_some();
    let routed = Arc::new(Mutex::new(None::<LayerRouting>));
    let left = Arc::clone(&routed);
    let (state, losses) = recomputed(block, inputs, move |block, inputs| {
        let mut log = Vec::new();
        let mut context = LayerContext {
            noise,
            stack,
            layer,
            real: real.as_ref(),
            log: is_asked.then_some(&mut log),
        };
        let state = run(block, inputs, &mut context);
        let routing = log.pop();
        let losses = routing.as_ref().map(LayerRouting::losses);
        *left.lock().unwrap_or_else(PoisonError::into_inner) = routing;
        (state, losses)
    });
    let routing = routed.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(log), Some(routing), Some(losses)) = (log, routing, losses) {
        log.push(routing.with_losses(losses));
    }
    state
}
