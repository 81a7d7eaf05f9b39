//! Activation checkpointing: of a part of a model the tape keeps the inputs alone, and the backward pass computes the
//! rest anew.

mod nodes;

use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Gradients, Tensor};
use std::collections::HashSet;

/// Runs `compute` and keeps for the backward pass only what it starts from, `module` and `inputs`. The backward pass
/// runs it again, this time with a tape (after Chen et al., "Training Deep Nets with Sublinear Memory Cost",
/// [arXiv 1604.06174](https://arxiv.org/abs/1604.06174)).
///
/// `compute` must compute the same each time: what it draws at random must follow from what it holds. The gradients
/// are then, bit for bit, those of a call of `compute` alone, if an input that is used several times is given once for
/// each use: gradients of one tensor are added in the order of its uses, from the last of `inputs` to the first.
///
/// The second output is for losses that a layer adds to the model's. If neither an input nor a parameter of `module`
/// asks for gradients, `compute` runs once, on what it is given.
///
/// # Shapes
///
/// - inputs, output: any
/// - losses: `[n]`
pub fn recomputed<M, const D: usize, const N: usize>(
    module: &M,
    inputs: [Tensor<D>; N],
    compute: impl Fn(&M, [Tensor<D>; N]) -> (Tensor<D>, Option<Tensor<1>>) + Send + 'static,
) -> (Tensor<D>, Option<Tensor<1>>)
where
    M: Module + 'static,
{
    let tracked = inputs.each_ref().map(Tensor::is_tracked);
    let of_inputs = inputs.iter().filter(|input| input.is_tracked());
    let mut sources: Vec<DispatchTensor> =
        of_inputs.map(|input| input.clone().into_dispatch()).collect();
    let mut parameters = Trainable::default();
    module.visit(&mut parameters);
    sources.append(&mut parameters.tensors);
    if sources.is_empty() {
        return compute(module, inputs);
    }

    // Without a tape, and yet on the device with autodiff: an operation may compute otherwise without it.
    let ids = parameters.ids;
    let module = module.clone().map(&mut RequireGrad { ids: &ids, required: false });
    let inputs = inputs.map(|input| input.set_require_grad(false));
    let (output, losses) = compute(&module, inputs.clone());
    let values = [Some(output.inner().into_dispatch()), losses.map(|l| l.inner().into_dispatch())];

    let backward = move |[output_grad, losses_grad]: [Option<DispatchTensor>; 2]| {
        let module = module.map(&mut RequireGrad { ids: &ids, required: true });
        let mut tracked = tracked.into_iter();
        let inputs =
            inputs.map(|input| input.set_require_grad(tracked.next().expect("one for each")));
        let (output, losses) = compute(&module, inputs.clone());
        let output = output_grad.map(|grad| (output.into_dispatch(), grad));
        let losses = losses.zip(losses_grad).map(|(losses, grad)| (losses.into_dispatch(), grad));
        let seeded = nodes::seeded(output.into_iter().chain(losses).collect());
        let mut gradients = Tensor::<1>::from_dispatch(seeded).backward();
        let of_inputs = inputs.into_iter().filter(Tensor::is_require_grad);
        let mut found: Vec<Option<DispatchTensor>> = of_inputs
            .map(|input| input.grad_remove(&mut gradients).map(Tensor::into_dispatch))
            .collect();
        module.visit(&mut Take { ids: &ids, gradients: &mut gradients, found: &mut found });
        found
    };
    let [output, losses] = nodes::record(sources, values, Box::new(backward));
    let output = output.expect("an output for its value");
    (Tensor::from_dispatch(output), losses.map(Tensor::from_dispatch))
}

/// The parameters that ask for gradients, in the order of a visit.
#[derive(Default)]
struct Trainable {
    ids: HashSet<ParamId>,
    tensors: Vec<DispatchTensor>,
}

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if tensor.is_require_grad() {
            self.ids.insert(param.id);
            self.tensors.push(tensor.into_dispatch());
        }
    }
}

/// Makes leaves of their own of the parameters with these ids.
struct RequireGrad<'a> {
    ids: &'a HashSet<ParamId>,
    required: bool,
}

impl ModuleMapper for RequireGrad<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.ids.contains(&param.id) {
            true => param.map(|tensor| tensor.set_require_grad(self.required)),
            false => param,
        }
    }
}

/// Takes the gradients of the parameters with these ids, in the order of a visit.
struct Take<'a> {
    ids: &'a HashSet<ParamId>,
    gradients: &'a mut Gradients,
    found: &'a mut Vec<Option<DispatchTensor>>,
}

impl ModuleVisitor for Take<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.ids.contains(&param.id) {
            let gradient = param.val().grad_remove(self.gradients);
            self.found.push(gradient.map(Tensor::into_dispatch));
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
