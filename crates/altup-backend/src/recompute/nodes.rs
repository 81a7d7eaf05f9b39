//! The nodes of a recomputed part on the tape of the backend that its tensors are of.
//!
//! Burn's nodes have a number of parents that is fixed when the program is compiled, and one output. A part has any
//! number of sources, so they are a chain:
//!
//! ```text
//! source 0 ─ Deliver ─ Deliver ─ … ─ Run ─ Output
//!            source 1 ─┘               └── Output
//! ```
//!
//! The backward pass comes from the right. Each output leaves its gradient for `Run`, which runs the part again; each
//! `Deliver` hands on the gradient of its source.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, BackendTensor, DispatchKindConversion, DispatchTensor, TensorMetadata,
};
use burn::tensor::Shape;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Takes the gradients of the outputs that have any, and returns those of the sources.
pub(super) type RunBackward =
    Box<dyn FnOnce([Option<DispatchTensor>; 2]) -> Vec<Option<DispatchTensor>> + Send>;

/// Records a part: its outputs, of which the values are given, with gradients for `sources`.
///
/// # Panics
///
/// Panics if there is no source, or one that asks for no gradients.
pub(super) fn record(
    sources: Vec<DispatchTensor>,
    values: [Option<DispatchTensor>; 2],
    backward: RunBackward,
) -> [Option<DispatchTensor>; 2] {
    let like = sources[0].clone();
    on_backend_of(&like, Record { sources, values, backward })
}

/// A scalar whose backward pass starts with the given gradient in each tensor.
///
/// # Panics
///
/// Panics if there is no tensor.
pub(super) fn seeded(tensors: Vec<(DispatchTensor, DispatchTensor)>) -> DispatchTensor {
    let like = tensors[0].0.clone();
    on_backend_of(&like, Seeded { tensors })
}

/// What is done on the backend of a tensor with a tape.
trait OnBackend {
    type Output;

    fn run<B, C>(self) -> Self::Output
    where
        B: Backend,
        C: CheckpointStrategy,
        DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>;
}

fn on_backend_of<O: OnBackend>(like: &DispatchTensor, operation: O) -> O::Output {
    macro_rules! first_of {
        ($($(#[$attribute:meta])* $backend:ty),* $(,)?) => {
            $(
                $(#[$attribute])*
                if is_of::<Autodiff<$backend, NoCheckpointing>>(like) {
                    return operation.run::<$backend, NoCheckpointing>();
                }
                $(#[$attribute])*
                if is_of::<Autodiff<$backend, BalancedCheckpointing>>(like) {
                    return operation.run::<$backend, BalancedCheckpointing>();
                }
            )*
        };
    }
    first_of!(
        #[cfg(feature = "flex")]
        burn::backend::Flex,
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)] // Burn will drop it; it is supported while it ships.
        burn::backend::NdArray,
        #[cfg(feature = "tch")]
        #[allow(deprecated)] // As above.
        burn::backend::LibTorch,
        #[cfg(feature = "wgpu")]
        burn::backend::Wgpu,
        // Both are one type.
        #[cfg(all(feature = "cuda", not(feature = "wgpu")))]
        burn::backend::Cuda,
    );
    panic!("a tensor with a tape, of a backend that this crate is built for. Got {like:?}")
}

fn is_of<B: Backend>(tensor: &DispatchTensor) -> bool
where
    DispatchTensor: DispatchKindConversion<B>,
{
    <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(tensor.clone()).is_ok()
}

fn on<B: Backend>(tensor: DispatchTensor) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    match <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(tensor) {
        Ok(tensor) => tensor.float(),
        Err(reason) => panic!("the tensors of a part are of one backend: {reason}"),
    }
}

fn from<B: Backend>(tensor: FloatTensor<B>) -> DispatchTensor
where
    DispatchTensor: DispatchKindConversion<B>,
{
    <DispatchTensor as DispatchKindConversion<B>>::from_backend(BackendTensor::Float(tensor))
}

struct Record {
    sources: Vec<DispatchTensor>,
    values: [Option<DispatchTensor>; 2],
    backward: RunBackward,
}

impl OnBackend for Record {
    type Output = [Option<DispatchTensor>; 2];

    fn run<B, C>(self) -> Self::Output
    where
        B: Backend,
        C: CheckpointStrategy,
        DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
    {
        let sources: Vec<_> = self.sources.into_iter().map(on::<Autodiff<B, C>>).collect();
        let part = Part::<B>::new(Some(self.backward), Vec::new());
        // Nobody reads the value of a node between sources and outputs.
        let value = sources[0].primitive().clone();
        let last = chain::<B, C>(&part, sources, &value);
        let run = node::<B, C, _, 1>(Run(PhantomData), [last.node()], part.clone(), value);
        let mut number = 0..;
        self.values.map(|value| {
            let state = (part.clone(), number.next()?);
            let output = Output(PhantomData);
            let output = node::<B, C, _, 1>(output, [run.node()], state, on::<B>(value?));
            Some(from::<Autodiff<B, C>>(output))
        })
    }
}

struct Seeded {
    tensors: Vec<(DispatchTensor, DispatchTensor)>,
}

impl OnBackend for Seeded {
    type Output = DispatchTensor;

    fn run<B, C>(self) -> Self::Output
    where
        B: Backend,
        C: CheckpointStrategy,
        DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
    {
        let (tensors, grads): (Vec<_>, Vec<_>) = self
            .tensors
            .into_iter()
            .map(|(tensor, grad)| (on::<Autodiff<B, C>>(tensor), Some(on::<B>(grad))))
            .unzip();
        let (device, dtype) = (tensors[0].device(), tensors[0].dtype());
        let scalar = B::float_zeros(Shape::new([1]), &device, dtype.into());
        let part = Part::<B>::new(None, grads);
        from::<Autodiff<B, C>>(chain::<B, C>(&part, tensors, &scalar))
    }
}

/// A node for each source, which hands on its gradient: that of the last source first.
fn chain<B: Backend, C: CheckpointStrategy>(
    part: &Part<B>,
    sources: Vec<FloatTensor<Autodiff<B, C>>>,
    value: &FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let mut last: Option<FloatTensor<Autodiff<B, C>>> = None;
    for (number, source) in sources.into_iter().enumerate() {
        let (state, source) = ((part.clone(), number), source.node());
        let (deliver, value) = (Deliver(PhantomData), value.clone());
        last = Some(match last {
            None => node::<B, C, _, 1>(deliver, [source], state, value),
            Some(last) => node::<B, C, _, 2>(deliver, [last.node(), source], state, value),
        });
    }
    last.expect("a part has a source")
}

fn node<B, C, T, const N: usize>(
    operation: T,
    parents: [NodeGuard; N],
    state: T::State,
    value: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
    T: Backward<B, N>,
{
    match operation.prepare::<C>(parents).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state, value),
        OpsKind::UnTracked(_) => panic!("a node without a source that asks for gradients"),
    }
}

/// What the nodes of a part leave for each other.
struct Part<B: Backend>(Arc<Mutex<Left<B>>>);

struct Left<B: Backend> {
    of_outputs: [Option<FloatTensor<B>>; 2],
    backward: Option<RunBackward>,
    of_sources: Vec<Option<FloatTensor<B>>>,
}

impl<B: Backend> Part<B> {
    fn new(backward: Option<RunBackward>, of_sources: Vec<Option<FloatTensor<B>>>) -> Self {
        Self(Arc::new(Mutex::new(Left { of_outputs: [None, None], backward, of_sources })))
    }

    fn left(&self) -> MutexGuard<'_, Left<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> Clone for Part<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Backend> fmt::Debug for Part<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Part")
    }
}

/// Keeps the gradient of an output.
#[derive(Debug)]
struct Output<B>(PhantomData<B>);

impl<B: Backend> Backward<B, 1> for Output<B> {
    type State = (Part<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (part, number) = ops.state;
        part.left().of_outputs[number] = Some(grads.consume::<B>(&ops.node));
    }
}

/// Makes the gradients of the sources from those of the outputs.
#[derive(Debug)]
struct Run<B>(PhantomData<B>);

impl<B: Backend> Backward<B, 1> for Run<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Part<B>;

    fn backward(self, ops: Ops<Part<B>, 1>, _: &mut Gradients, _: &mut Checkpointer) {
        let part = ops.state;
        let (backward, of_outputs) = {
            let mut left = part.left();
            (left.backward.take(), std::mem::take(&mut left.of_outputs))
        };
        let backward = backward.expect("a tape is gone through once");
        let of_sources = backward(of_outputs.map(|grad| grad.map(from::<B>)));
        part.left().of_sources = of_sources.into_iter().map(|grad| grad.map(on::<B>)).collect();
    }
}

/// Hands on the gradient of a source, its last parent.
#[derive(Debug)]
struct Deliver<B>(PhantomData<B>);

impl<B: Backend, const N: usize> Backward<B, N> for Deliver<B> {
    type State = (Part<B>, usize);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (part, number) = ops.state;
        let source = ops.parents.into_iter().next_back().flatten();
        let grad = part.left().of_sources[number].take();
        if let (Some(source), Some(grad)) = (source, grad) {
            grads.register::<B>(source.id, grad);
        }
    }
}
