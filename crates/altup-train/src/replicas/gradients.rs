//! The gradients of a step, added over its micro-batches on all replicas.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor, TensorData};

use super::Replicas;
use super::exchange::{BUCKET, Exchange};
use super::tree::PairwiseSum;

/// The sum of the gradients of a step's micro-batches, in the order of the [tree](super::tree). Of A micro-batches on
/// this replica it holds up to log₂ A sets of gradients, beside the one that is computed; of one, none.
#[derive(Default)]
pub struct GradientSum {
    sum: PairwiseSum<GradientsParams>,
}

impl GradientSum {
    /// Adds the gradients of this replica's next micro-batch.
    pub fn push<M: Module>(&mut self, module: &M, gradients: GradientsParams) {
        self.sum.push(gradients, |earlier, later| add(module, earlier, later));
    }

    /// The sum over all micro-batches of all replicas: a gradient in f32 for every parameter that is trained, of zeros
    /// where it has none. `what` is as in "waited for the gradients of step 7".
    pub fn total<M: Module>(self, module: &M, replicas: &Replicas, what: &str) -> GradientsParams {
        let own = self.sum.total(|earlier, later| add(module, earlier, later));
        let mut gradients = own.unwrap_or_default();
        if replicas.is_lone() {
            module.visit(&mut Complete { gradients: &mut gradients });
            return gradients;
        }
        let mut sum = SumOverAll {
            gradients: &mut gradients,
            exchange: Exchange::new(replicas, BUCKET),
            what,
            taken: Vec::new(),
            put_back: Vec::new(),
            values: 0,
        };
        module.visit(&mut sum);
        sum.exchange_taken();
        gradients
    }
}

/// The sum of two sets of gradients. What only one has is added to zeros, as if the other had them.
fn add<M: Module>(
    module: &M,
    mut earlier: GradientsParams,
    later: GradientsParams,
) -> GradientsParams {
    struct Add<'a> {
        earlier: &'a mut GradientsParams,
        later: GradientsParams,
    }
    impl ModuleVisitor for Add<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let pair = (self.earlier.remove::<D>(param.id), self.later.remove::<D>(param.id));
            let sum = match pair {
                (Some(earlier), Some(later)) => earlier + later,
                (Some(one), None) | (None, Some(one)) => one + 0.0,
                (None, None) => return,
            };
            self.earlier.register::<D>(param.id, sum);
        }
    }
    module.visit(&mut Add { earlier: &mut earlier, later });
    earlier
}

/// Gives zeros to a trained parameter without a gradient.
struct Complete<'a> {
    gradients: &'a mut GradientsParams,
}

impl ModuleVisitor for Complete<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() && self.gradients.get::<D>(param.id).is_none() {
            self.gradients.register::<D>(param.id, param.val().inner().zeros_like());
        }
    }
}

/// Sums gradients over all replicas, in the order of the model's parameters, so that all replicas sum the same ones
/// together. As many parameters as fill a bucket are on the host at a time.
struct SumOverAll<'a> {
    gradients: &'a mut GradientsParams,
    exchange: Exchange<'a>,
    what: &'a str,
    taken: Vec<Vec<f32>>,
    put_back: Vec<Box<dyn FnOnce(Vec<f32>, &mut GradientsParams)>>,
    /// How many are taken.
    values: usize,
}

impl SumOverAll<'_> {
    fn exchange_taken(&mut self) {
        self.exchange.sum(&mut self.taken, self.what);
        for (values, put_back) in self.taken.drain(..).zip(self.put_back.drain(..)) {
            put_back(values, self.gradients);
        }
        self.values = 0;
    }
}

impl ModuleVisitor for SumOverAll<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        let (id, shape, device) = (param.id, param.val().shape(), param.val().inner().device());
        let values = match self.gradients.remove::<D>(id) {
            Some(gradient) => {
                let values = gradient.into_data().try_into_vec::<f32>();
                values.unwrap_or_else(|error| unreachable!("gradients are f32: {error:?}"))
            }
            None => vec![0.0; shape.num_elements()],
        };
        self.values += values.len();
        self.taken.push(values);
        self.put_back.push(Box::new(move |values, gradients| {
            let sum = Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32));
            gradients.register::<D>(id, sum);
        }));
        if self.values >= BUCKET {
            self.exchange_taken();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_threads;
    use super::*;
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Pair {
        matrix: Param<Tensor<2>>,
        vector: Param<Tensor<1>>,
        frozen: Param<Tensor<1>>,
    }

    fn pair(device: &Device) -> Pair {
        let frozen = Param::from_tensor(Tensor::ones([2], device)).set_require_grad(false);
        Pair {
            matrix: Param::from_tensor(Tensor::ones([2, 2], device)),
            vector: Param::from_tensor(Tensor::ones([3], device)),
            frozen,
        }
    }

    /// The gradients of micro-batch `number` of 4. The vector has none in the third.
    fn gradients(pair: &Pair, number: usize) -> GradientsParams {
        let device = crate::device::cpu();
        let values = |from: f32, count: usize| -> Vec<f32> {
            (0..count)
                .map(|at| (from + at as f32 + 0.1).sin() * 10f32.powi(number as i32))
                .collect()
        };
        let mut gradients = GradientsParams::new();
        let matrix = TensorData::new(values(number as f32, 4), [2, 2]);
        gradients.register::<2>(pair.matrix.id, Tensor::from_data(matrix, &device));
        if number != 2 {
            let vector = TensorData::new(values(number as f32 + 9.0, 3), [3]);
            gradients.register::<1>(pair.vector.id, Tensor::from_data(vector, &device));
        }
        gradients
    }

    fn bits(pair: &Pair, gradients: &GradientsParams) -> Vec<u32> {
        let matrix = gradients.get::<2>(pair.matrix.id).unwrap().into_data();
        let vector = gradients.get::<1>(pair.vector.id).unwrap().into_data();
        matrix.iter::<f32>().chain(vector.iter::<f32>()).map(f32::to_bits).collect()
    }

    #[test]
    fn the_sum_is_the_same_bits_on_any_number_of_replicas() {
        let summed = |size: usize| {
            on_threads(size, |replicas| {
                let pair = pair(&crate::device::cpu().autodiff());
                let (rank, each) = (replicas.place().rank, 4 / size);
                let mut sum = GradientSum::default();
                for number in rank * each..(rank + 1) * each {
                    sum.push(&pair, gradients(&pair, number));
                }
                let total = sum.total(&pair, &replicas, "the gradients");
                assert!(total.get::<1>(pair.frozen.id).is_none());
                bits(&pair, &total)
            })
        };
        let alone = summed(1);
        assert_eq!(summed(2), vec![alone[0].clone(); 2]);
        assert_eq!(summed(4), vec![alone[0].clone(); 4]);

        let pair = pair(&crate::device::cpu().autodiff());
        let value = |number: usize| {
            gradients(&pair, number)
                .get::<2>(pair.matrix.id)
                .unwrap()
                .into_data()
                .iter::<f32>()
                .next()
                .unwrap()
        };
        let by_hand = (value(0) + value(1)) + (value(2) + value(3));
        assert_eq!(alone[0][0], by_hand.to_bits());
    }

    #[test]
    fn what_has_no_gradient_anywhere_has_zeros_everywhere() {
        for size in [1, 2] {
            let summed = on_threads(size, |replicas| {
                let pair = pair(&crate::device::cpu().autodiff());
                let mut sum = GradientSum::default();
                sum.push(&pair, gradients(&pair, 2));
                bits(&pair, &sum.total(&pair, &replicas, "the gradients"))[4..].to_vec()
            });
            assert_eq!(summed, vec![vec![0; 3]; size]);
        }
    }
}
