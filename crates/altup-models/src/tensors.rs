use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use crate::T5;
use crate::parameters::ParameterPath;

/// A tensor in f32 under the name that it has in a model directory.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name.
    pub name: String,
    /// The shape, as stored in a file.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

/// The parameters of a model.
pub fn parameter_tensors(model: &T5) -> Vec<NamedTensor> {
    collect(model, Source::Values)
}

/// The gradients of a model's parameters, under the parameters' names; a parameter that the loss
/// doesn't depend on has none.
pub fn gradient_tensors(model: &T5, gradients: &Gradients) -> Vec<NamedTensor> {
    collect(model, Source::Gradients(gradients))
}

/// Writes tensors to a safetensors file, whole or not at all.
///
/// # Errors
///
/// If the file can't be written; what was there before stays.
pub fn write_tensors(path: &Path, tensors: &[NamedTensor]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .prefix(".partial-")
        .permissions(ordinary_permissions())
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    // Hugging Face refuses a file that doesn't say which framework's layout it has.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    let bytes = safetensors::serialize(views, Some(format)).map_err(io::Error::other)?;
    file.write_all(&bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Those of a file made by `File::create`, which a temporary file lacks.
fn ordinary_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

impl View for &NamedTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

enum Source<'a> {
    Values,
    Gradients(&'a Gradients),
}

fn collect(model: &T5, source: Source<'_>) -> Vec<NamedTensor> {
    struct Collect<'a> {
        source: Source<'a>,
        path: ParameterPath,
        tensors: Vec<NamedTensor>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = match self.source {
                Source::Values => Some(param.val()),
                Source::Gradients(gradients) => param.val().grad(gradients),
            };
            let Some(tensor) = tensor else { return };
            let tensor = if self.path.is_transposed() { tensor.transpose() } else { tensor };
            let shape = tensor.dims().to_vec();
            let values = to_f32(tensor.into_data());
            self.tensors.push(NamedTensor { name: self.path.tensor_name(), shape, values });
        }
    }
    let mut collect = Collect { source, path: ParameterPath::default(), tensors: Vec::new() };
    model.visit(&mut collect);
    collect.tensors
}

fn to_f32(data: TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}
