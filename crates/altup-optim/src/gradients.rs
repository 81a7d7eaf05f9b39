use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::clip::clip;
use crate::square_sum::SquareSum;

/// The joint Euclidean norm of all gradients of a model. It is read from the device, once for the whole model.
pub fn global_norm<M: Module>(model: &M, gradients: &GradientsParams) -> f64 {
    global_square_sum(model, gradients).map_or(0.0, |sum| sum.into_scalar::<f64>().sqrt())
}

/// The square of [`global_norm`], `[1]`, on the device: nothing waits for it. None if there is no gradient.
pub fn global_square_sum<M: Module>(model: &M, gradients: &GradientsParams) -> Option<Tensor<1>> {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sum: SquareSum,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.sum.add(gradient);
            }
        }
    }
    let mut squares = Squares { gradients, sum: SquareSum::new() };
    model.visit(&mut squares);
    squares.sum.total()
}

/// Scales all gradients of a model down to a joint norm of `max_norm`, if theirs is larger. `square_sum` is theirs, from
/// [`global_square_sum`]. On a GPU nothing waits for it.
pub fn clip_gradients<M: Module>(
    model: &M,
    gradients: &mut GradientsParams,
    square_sum: &Tensor<1>,
    max_norm: f64,
) {
    map_gradients(model, gradients, Clip { square_sum, max_norm });
}

/// Multiplies all gradients of a model by `factor`.
pub fn scale_gradients<M: Module>(model: &M, gradients: &mut GradientsParams, factor: f64) {
    map_gradients(model, gradients, Scale(factor));
}

/// Lays all gradients of a model out row by row in memory. Without it, a resumed run on ndarray is not exact.
///
/// A backend may leave a gradient transposed in memory, and then the parameter that it updates. A parameter from a
/// checkpoint lies row by row. Both have the same values, but products sum them in different orders, and the last bits
/// differ.
pub fn make_contiguous<M: Module>(model: &M, gradients: &mut GradientsParams) {
    map_gradients(model, gradients, Contiguous);
}

/// Replaces each gradient of a model.
pub fn map_gradients<M: Module>(model: &M, gradients: &mut GradientsParams, map: impl GradientMap) {
    model.visit(&mut MapGradients { gradients, map });
}

/// What replaces each gradient, whatever its rank.
pub trait GradientMap {
    /// The new gradient.
    fn map<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<D>;
}

struct Scale(f64);

impl GradientMap for Scale {
    fn map<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<D> {
        gradient * self.0
    }
}

struct Clip<'a> {
    square_sum: &'a Tensor<1>,
    max_norm: f64,
}

impl GradientMap for Clip<'_> {
    fn map<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<D> {
        clip(gradient, self.square_sum.clone(), self.max_norm)
    }
}

struct Contiguous;

impl GradientMap for Contiguous {
    /// A reshape copies what isn't contiguous, and nothing else.
    fn map<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<D> {
        let shape = gradient.shape();
        gradient.reshape([shape.num_elements()]).reshape(shape)
    }
}

struct MapGradients<'a, M> {
    gradients: &'a mut GradientsParams,
    map: M,
}

impl<M: GradientMap> ModuleVisitor for MapGradients<'_, M> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register::<D>(param.id, self.map.map(gradient));
        }
    }
}
