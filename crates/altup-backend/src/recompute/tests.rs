use super::recomputed;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Module, Debug)]
struct Scale {
    by: Param<Tensor<1>>,
    unused: Param<Tensor<1>>,
}

fn vector(values: [f32; 2], device: &Device) -> Tensor<1> {
    Tensor::from_data(values, device)
}

fn scale(device: &Device) -> Scale {
    let param = |values| Param::from_tensor(vector(values, device));
    Scale { by: param([2.0, 3.0]), unused: param([7.0, 7.0]) }
}

fn numbers(tensor: Option<Tensor<1>>) -> Option<Vec<f32>> {
    tensor.map(|tensor| tensor.into_data().iter().collect())
}

/// y = s x · x and the loss 5 Σ s, with s = (2, 3) and x = (1, −1). Of Σ 10 y + 5 Σ s: dx = 20 s x = (40, −60) and
/// ds = 10 x² + 5 = (15, 15). The part runs once forward and once backward.
#[test]
fn gradients_by_hand() {
    let device = Device::flex().autodiff();
    let (module, x) = (scale(&device), vector([1.0, -1.0], &device).require_grad());
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let (y, losses) = recomputed(&module, [x.clone()], move |module: &Scale, [x]| {
        counted.fetch_add(1, Ordering::Relaxed);
        (module.by.val() * x.clone() * x, Some(module.by.val().sum() * 5.0))
    });
    assert_eq!(numbers(Some(y.clone())), Some(vec![2.0, 3.0]));
    assert_eq!(numbers(losses.clone()), Some(vec![25.0]));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    let gradients = (y.sum() * 10.0 + losses.unwrap()).backward();
    assert_eq!(numbers(x.grad(&gradients)), Some(vec![40.0, -60.0]));
    assert_eq!(numbers(module.by.grad(&gradients)), Some(vec![15.0, 15.0]));
    assert_eq!(numbers(module.unused.grad(&gradients)), None);
    assert_eq!(runs.load(Ordering::Relaxed), 2);
}

/// What asks for no gradient gets none, and what asks for one gets it whatever the others do: an input beside a frozen
/// module, a parameter beside an input without gradients, one output of two.
#[test]
fn only_those_that_ask_get_gradients() {
    let device = Device::flex().autodiff();
    let run = |module: &Scale, x: Tensor<1>| {
        recomputed(module, [x], |module: &Scale, [x]| {
            (module.by.val() * x, Some(module.by.val().sum()))
        })
    };
    let x = vector([4.0, 5.0], &device).require_grad();
    let frozen = scale(&device).no_grad();
    let gradients = run(&frozen, x.clone()).0.sum().backward();
    assert_eq!(numbers(x.grad(&gradients)), Some(vec![2.0, 3.0]));
    assert_eq!(numbers(frozen.by.grad(&gradients)), None);

    let module = scale(&device);
    let constant = x.clone().detach().set_require_grad(false);
    let (y, losses) = run(&module, constant.clone());
    let gradients = y.sum().backward();
    assert_eq!(numbers(module.by.grad(&gradients)), Some(vec![4.0, 5.0]));
    drop(losses);
    let (_, losses) = run(&module, x.clone());
    let gradients = losses.unwrap().backward();
    assert_eq!(numbers(module.by.grad(&gradients)), Some(vec![1.0, 1.0]));
    assert_eq!(numbers(x.grad(&gradients)), None);

    let (y, _) = run(&frozen, constant);
    assert!(!y.is_tracked());
    let (y, _) = run(&scale(&Device::flex()), vector([4.0, 5.0], &Device::flex()));
    assert_eq!(numbers(Some(y)), Some(vec![8.0, 15.0]));
}

/// One tensor as two inputs: its gradients are added up. Under Burn's own recomputation too, and one part in another.
#[test]
fn parts_of_parts_and_inputs_given_twice() {
    for device in [Device::flex().autodiff(), Device::flex().autodiff().gradient_checkpointing()] {
        let (module, x) = (scale(&device), vector([1.0, 2.0], &device).require_grad());
        let (y, _) = recomputed(&module, [x.clone(), x.clone()], |module: &Scale, [a, b]| {
            recomputed(module, [a, b], |module: &Scale, [a, b]| (module.by.val() * a * b, None))
        });
        let gradients = y.sum().backward();
        assert_eq!(numbers(x.grad(&gradients)), Some(vec![4.0, 12.0]));
        assert_eq!(numbers(module.by.grad(&gradients)), Some(vec![1.0, 4.0]));
    }
}
