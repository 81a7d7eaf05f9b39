use altup_models::{
    FloatType, ModelDirectory, NamedTensor, cross_entropy_sum, gradient_tensors, write_tensors,
};
use altup_train::token_rows;
use anyhow::Context;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::Args;
use serde::Deserialize;
use std::path::{Path, PathBuf};

use super::model_source::ModelSource;
use super::{BackendArgs, OverwriteArgs, PrecisionArgs};

/// Run a batch through a model and write what comes out: logits, encoder output, loss, gradients.
/// There is no dropout.
#[derive(Args)]
pub(super) struct ForwardArgs {
    /// A model directory, the folder of a run, or the name of a model on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A JSON file {"input_ids": [[…]], "labels": [[…]]}; 0 pads both, and shorter rows are padded
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// A safetensors file for `logits`, `encoder_output` and `loss`, the mean over labels other than 0
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// A safetensors file for the loss's gradient of every parameter, under the parameter's name
    #[arg(long, value_name = "FILE")]
    gradients: Option<PathBuf>,
    #[command(flatten)]
    overwrite: OverwriteArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    input_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<u32>>,
}

pub(super) fn run(args: ForwardArgs) -> anyhow::Result<()> {
    let device = args.backend.open()?;
    for path in [&args.output].into_iter().chain(&args.gradients) {
        args.overwrite.check(path)?;
    }
    let device = if args.gradients.is_some() { device.autodiff() } else { device };
    let directory = ModelDirectory::new(ModelSource::find(&args.model)?.directory);
    let config = directory.config()?.for_evaluation();
    let inputs = Inputs::read(&args.inputs, config.vocab_size)
        .with_context(|| format!("cannot use {}", args.inputs.display()))?;
    let (_, model) = directory.load_as(config, &device)?;
    let model = args.precision.apply(model)?;

    let input_ids = padded(&inputs.input_ids, &device);
    let labels = padded(&inputs.labels, &device);
    let targets = token_rows::num_labels(&inputs.labels);
    let padding = input_ids.clone().equal_elem(0);
    let memory = model.encode(input_ids, Some(&padding));
    let logits = model.forward_decoder(&memory, labels.clone());
    let loss = cross_entropy_sum(logits.clone(), labels) / targets as f64;

    let outputs = [
        named("logits", logits),
        named("encoder_output", memory.hidden),
        named("loss", loss.clone()),
    ];
    write(&args.output, &outputs)?;
    match &args.gradients {
        Some(path) => write(path, &gradient_tensors(&model, &loss.backward())),
        None => Ok(()),
    }
}

impl Inputs {
    fn read(path: &Path, vocab_size: usize) -> anyhow::Result<Self> {
        let inputs: Self = serde_json::from_slice(&std::fs::read(path)?)?;
        token_rows::check(&inputs.input_ids, &inputs.labels, vocab_size)?;
        Ok(inputs)
    }
}

/// `[rows, longest]`
fn padded(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let longest = rows.iter().map(Vec::len).max().unwrap_or_default();
    let padding = |row: &Vec<u32>| std::iter::repeat_n(0, longest - row.len());
    let ids: Vec<i32> =
        rows.iter().flat_map(|row| row.iter().map(|&id| id as i32).chain(padding(row))).collect();
    Tensor::from_data(TensorData::new(ids, [rows.len(), longest]), device)
}

fn named<const D: usize>(name: &str, tensor: Tensor<D>) -> NamedTensor {
    let shape = tensor.dims().to_vec();
    let values = tensor.into_data().iter::<f32>().collect();
    NamedTensor { name: name.into(), shape, values }
}

fn write(path: &Path, tensors: &[NamedTensor]) -> anyhow::Result<()> {
    write_tensors(path, tensors, FloatType::F32)
        .with_context(|| format!("cannot write {}", path.display()))
}
