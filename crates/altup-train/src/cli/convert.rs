use altup_models::{FloatType, ModelDirectory, SaveOptions, T5, T5Config, num_parameters, widen};
use altup_train::progress::format_count;
use altup_train::variant::Variant;
use anyhow::Context;
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use std::fs;
use std::path::{Path, PathBuf};

use super::inspect::headline;
use super::model_source::{ModelSource, from_checkpoint};
use super::{BackendArgs, OverwriteArgs, output};

/// Convert a model: a dense T5 into an AltUp that computes the same, a run's checkpoint into a model
/// directory, its numbers into another type
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// A model directory, the folder of a run, or the name of a model on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A checkpoint of the run in place of its trained model: a step, or `last`
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<String>,
    /// The new model directory
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Widen a dense model; the outputs stay those of the dense one
    #[arg(long, alias = "to", value_enum, value_name = "VARIANT")]
    variant: Option<Variant>,
    /// The number of blocks K of the widened model
    #[arg(long, default_value_t = 2, requires = "variant", value_name = "K")]
    blocks: usize,
    /// The type of the numbers in the file
    #[arg(long, value_enum, default_value_t = NumberType::F32)]
    dtype: NumberType,
    /// Split the weights into files of at most this many megabytes, with an index
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_size: Option<u64>,
    /// Add the Python module that opens the directory in Hugging Face transformers
    #[arg(long)]
    with_python: bool,
    #[command(flatten)]
    overwrite: OverwriteArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum NumberType {
    F32,
    F16,
    Bf16,
}

/// Files beside the weights that say how text becomes tokens, and how to generate.
const COMPANIONS: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "generation_config.json",
];

pub(super) fn run(args: ConvertArgs) -> anyhow::Result<()> {
    let device = args.backend.open()?;
    check_output(&args.output, &args.overwrite)?;
    let (config, model, companions) = match &args.checkpoint {
        Some(checkpoint) => {
            let (config, model) = from_checkpoint(&args.model, checkpoint, &device)?;
            (config, model, args.model.clone())
        }
        None => {
            let source = ModelSource::find(&args.model)?;
            let (config, model) = source.load(&device)?;
            (config, model, source.directory)
        }
    };
    let (config, model) = match args.variant {
        None => (config, model),
        Some(variant) => widened(config, model, variant, args.blocks, &device)?,
    };
    let dtype = match args.dtype {
        NumberType::F32 => FloatType::F32,
        NumberType::F16 => FloatType::F16,
        NumberType::Bf16 => FloatType::BF16,
    };
    let max_shard_bytes = args.max_shard_size.map(|megabytes| megabytes * 1_000_000);
    let options = SaveOptions { dtype, max_shard_bytes };
    save(&args.output, &config, &model, &options, &companions, args.with_python)?;
    Ok(output::line(&format!(
        "{}: {}, {} parameters, {dtype}",
        args.output.display(),
        headline(&config),
        format_count(num_parameters(&model) as u64)
    ))?)
}

fn check_output(path: &Path, overwrite: &OverwriteArgs) -> anyhow::Result<()> {
    overwrite.check(path)?;
    anyhow::ensure!(
        !path.exists() || path.join("config.json").exists(),
        "{} is no model directory (it has no config.json), so it is not replaced",
        path.display()
    );
    Ok(())
}

fn widened(
    config: T5Config,
    model: T5,
    variant: Variant,
    num_blocks: usize,
    device: &Device,
) -> anyhow::Result<(T5Config, T5)> {
    anyhow::ensure!(
        config.altup.is_none(),
        "the model is widened already ({}): only a dense model becomes another --variant",
        headline(&config)
    );
    let Some(altup) = variant.altup(num_blocks) else {
        return Ok((config, model));
    };
    let mut untied = T5Config { altup: Some(altup.clone()), ..config.clone() };
    untied.tie_word_embeddings = false; // where it must be, `widen` unties it
    untied.validate()?;
    Ok(widen(&config, &model, altup, device))
}

/// Writes the directory beside its place, and moves it there when it is whole.
fn save(
    path: &Path,
    config: &T5Config,
    model: &T5,
    options: &SaveOptions,
    companions: &Path,
    with_python: bool,
) -> anyhow::Result<()> {
    let error = || format!("cannot write {}", path.display());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(error)?;
    // What it is written to lies in a temporary folder and isn't one: it has the permissions of any other.
    let partial =
        tempfile::Builder::new().prefix(".partial-").tempdir_in(parent).with_context(error)?;
    let whole = partial.path().join("whole");
    let directory = ModelDirectory::new(&whole);
    directory.save_as(config, model, options)?;
    if with_python {
        directory.add_python()?;
    }
    copy_companions(companions, &whole)?;
    // The old one goes when the new one has its place.
    let replaced = partial.path().join("replaced");
    if path.exists() {
        fs::rename(path, &replaced).with_context(error)?;
    }
    fs::rename(&whole, path).inspect_err(|_| drop(fs::rename(&replaced, path))).with_context(error)
}

/// Copies the files that a model directory has beside its weights.
pub(super) fn copy_companions(from: &Path, to: &Path) -> anyhow::Result<()> {
    for name in COMPANIONS {
        let file = from.join(name);
        if file.exists() {
            fs::copy(&file, to.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(())
}
