//! What the parameters of a model are, and how they are read and changed one by one.

mod role;
mod schema;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::T5;

pub use role::{AttentionKind, Role, Stack};
pub(crate) use schema::{EMBEDDING_TABLE, OUTPUT_TABLE};

/// A parameter of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// The name of its tensor in a model directory, Hugging Face's where T5 has the parameter.
    pub name: String,
    /// The path of module fields from the [`T5`] to it, as in `encoder.blocks.0.altup.prediction_coefs`.
    pub path: String,
    /// Its shape as stored in a file; a projection's is `[out, in]`, transposed from Burn's.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    /// The stack that it is in; the tables are in none.
    pub stack: Option<Stack>,
    /// The layer of the stack that it is in, counted from 0. Final norms and position biases, which a
    /// stack has once, are in none.
    pub layer: Option<usize>,
}

impl ParameterInfo {
    /// The number of scalars.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Lists the parameters of a model in a fixed order, without allocating those that aren't yet.
///
/// # Panics
///
/// Panics if a parameter has Burn's LoRA adapters, which are no parameters of a T5: `Module::materialize` joins them with it.
pub fn parameters(model: &T5) -> Vec<ParameterInfo> {
    struct List(Vec<ParameterInfo>);
    impl ParameterVisitor for List {
        fn visit<const D: usize>(&mut self, info: &ParameterInfo, _: &Param<Tensor<D>>) {
            self.0.push(info.clone());
        }
    }
    let mut list = List(Vec::new());
    visit_parameters(model, &mut list);
    list.0
}

/// The number of a model's scalars.
pub fn num_parameters(model: &T5) -> usize {
    parameters(model).iter().map(ParameterInfo::size).sum()
}

/// Excludes the selected parameters from training: they get no gradients and no optimizer step. Gradients still flow
/// through them to other parameters; dropout stays on. Parameters that are not selected stay as they were.
///
/// ```
/// use altup_models::{Role, T5Config, freeze, size};
/// use burn::tensor::Device;
///
/// let config = T5Config { vocab_size: 64, ..size("tiny").unwrap() };
/// let model = config.init(1, &Device::flex().autodiff());
/// // Train the norms alone.
/// let model = freeze(model, |parameter| {
///     !matches!(parameter.role, Role::SubLayerNorm | Role::FinalNorm)
/// });
/// assert!(!model.embedding.weight.is_require_grad());
/// assert!(model.encoder.final_norm.gamma.is_require_grad());
/// ```
pub fn freeze(model: T5, select: impl FnMut(&ParameterInfo) -> bool) -> T5 {
    map_parameters(model, &mut SetRequireGrad { select, require_grad: false })
}

/// Trains the selected parameters again that [`freeze`] stopped.
pub fn unfreeze(model: T5, select: impl FnMut(&ParameterInfo) -> bool) -> T5 {
    map_parameters(model, &mut SetRequireGrad { select, require_grad: true })
}

struct SetRequireGrad<S> {
    select: S,
    require_grad: bool,
}

impl<S: FnMut(&ParameterInfo) -> bool> ParameterMapper for SetRequireGrad<S> {
    fn map<const D: usize>(
        &mut self,
        info: &ParameterInfo,
        param: Param<Tensor<D>>,
    ) -> Param<Tensor<D>> {
        if (self.select)(info) { param.set_require_grad(self.require_grad) } else { param }
    }
}

/// Something that looks at each parameter of a model.
pub trait ParameterVisitor {
    /// Looks at a parameter. Its own shape is Burn's, that of `info` the file's.
    fn visit<const D: usize>(&mut self, info: &ParameterInfo, param: &Param<Tensor<D>>);
}

/// Something that puts another parameter in the place of each of a model's.
pub trait ParameterMapper {
    /// What takes the place of a parameter. Its own shape is Burn's, that of `info` the file's.
    fn map<const D: usize>(
        &mut self,
        info: &ParameterInfo,
        param: Param<Tensor<D>>,
    ) -> Param<Tensor<D>>;
}

/// Shows each parameter of a model to `visitor`, in the order of [`parameters`].
///
/// # Panics
///
/// Panics if a parameter has Burn's LoRA adapters, which are no parameters of a T5: `Module::materialize` joins them with it.
pub fn visit_parameters(model: &T5, visitor: &mut impl ParameterVisitor) {
    model.visit(&mut Walk { path: Vec::new(), inner: visitor });
}

/// Changes each parameter of a model by `mapper`, in the order of [`parameters`].
///
/// # Panics
///
/// Panics if a parameter has Burn's LoRA adapters, which are no parameters of a T5: `Module::materialize` joins them with it.
pub fn map_parameters(model: T5, mapper: &mut impl ParameterMapper) -> T5 {
    model.map(&mut Walk { path: Vec::new(), inner: mapper })
}

/// A walk over a model's modules.
struct Walk<'a, I> {
    /// The names of the fields on the way here.
    path: Vec<String>,
    inner: &'a mut I,
}

impl<I> Walk<'_, I> {
    fn info<const D: usize>(&self, param: &Param<Tensor<D>>) -> ParameterInfo {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        ParameterInfo::at(&path, &param.lazy_shape())
    }
}

impl<V: ParameterVisitor> ModuleVisitor for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.info(param), param);
    }
}

impl<M: ParameterMapper> ModuleMapper for Walk<'_, M> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map(&self.info(&param), param)
    }
}

/// The parameter with other values, in Burn's layout and f32.
pub(crate) fn with_values<const D: usize>(
    param: Param<Tensor<D>>,
    values: Vec<f32>,
    device: &Device,
) -> Param<Tensor<D>> {
    let data = TensorData::new(values, param.lazy_shape());
    let tensor = Tensor::from_data(data, (device, DType::F32));
    let mut with_values = Param::from_tensor(tensor);
    with_values.id = param.id;
    with_values
}

/// Fills a model's parameters, each with what `values` gives for it in the layout of a file; one that it
/// gives nothing for stays as it was built. Stops at the first error.
pub(crate) fn fill<E>(
    model: T5,
    device: &Device,
    values: impl FnMut(&ParameterInfo) -> Result<Option<Vec<f32>>, E>,
) -> Result<T5, E> {
    struct Fill<'a, V, E> {
        values: V,
        device: &'a Device,
        error: Option<E>,
    }
    impl<V, E> ParameterMapper for Fill<'_, V, E>
    where
        V: FnMut(&ParameterInfo) -> Result<Option<Vec<f32>>, E>,
    {
        fn map<const D: usize>(
            &mut self,
            info: &ParameterInfo,
            param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            if self.error.is_some() {
                return param;
            }
            let values = match (self.values)(info) {
                Ok(Some(values)) => values,
                Ok(None) => return param,
                Err(error) => {
                    self.error = Some(error);
                    return param;
                }
            };
            let values = match (info.role.is_transposed(), info.shape.as_slice()) {
                (true, &[rows, columns]) => transpose(&values, rows, columns),
                _ => values,
            };
            with_values(param, values, self.device)
        }
    }
    let mut fill = Fill { values, device, error: None };
    let model = map_parameters(model, &mut fill);
    match fill.error {
        Some(error) => Err(error),
        None => Ok(model),
    }
}

/// Row-major `[rows, columns]` to `[columns, rows]`, in tiles that stay in the cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut transposed = vec![0.0; values.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    transposed[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    transposed
}
