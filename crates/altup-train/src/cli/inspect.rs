use altup_backend::is_gpu;
use altup_models::{
    AltUpModelConfig, AttentionKind, ParameterInfo, Reduction, Role, Stack, StepShape, T5,
    T5Config, forward_cost, parameters, size, size_names,
};
use altup_optim::OptimizerKind;
use altup_train::memory_estimate::{MemoryEstimate, Workload};
use altup_train::precision::Precision;
use altup_train::progress::{format_bytes, format_count};
use altup_train::variant::labelled;
use anyhow::Context;
use burn::tensor::{Device, Tensor};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::model_source::ModelSource;
use super::{BackendArgs, output};

/// Show what a model is made of: parameters and FLOPs by part, the memory that training takes, and the coefficients of
/// its AltUp
#[derive(Args)]
pub(super) struct InspectArgs {
    /// A model directory, the folder of a run, or the name of a model on the Hugging Face hub
    #[arg(long, value_name = "DIR", required_unless_present = "size", conflicts_with = "size")]
    model: Option<PathBuf>,
    /// A named size instead of a model: `altup sizes` lists them
    #[arg(long, value_name = "NAME")]
    size: Option<String>,
    /// An AltUp of this many blocks over the named size
    #[arg(long, value_name = "K", requires = "size")]
    blocks: Option<usize>,
    /// The named size as another model, by its label: recycled-k2, altup-k2-moe32 and so on, as `altup bench` takes them
    #[arg(long, value_name = "MODEL", requires = "size", conflicts_with = "blocks")]
    variant: Option<String>,
    /// Input tokens of an example
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    input_length: u64,
    /// Target tokens of an example
    #[arg(long, default_value_t = 114, value_name = "TOKENS")]
    target_length: u64,
    #[command(flatten)]
    training: TrainingArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

/// How the model would be trained; the memory follows from it, and nothing is trained.
#[derive(Args)]
struct TrainingArgs {
    /// Rows of a batch in training
    #[arg(long, default_value_t = 16, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: u64,
    /// Batches whose gradients are added up to a step, on one replica
    #[arg(long, default_value_t = 1, value_name = "BATCHES", value_parser = clap::value_parser!(u32).range(1..))]
    gradient_accumulation: u32,
    /// Whether inputs are padded in training
    #[arg(long)]
    padded: bool,
    /// The optimizer
    #[arg(long, value_enum, default_value_t = Optimizer::Adafactor)]
    optimizer: Optimizer,
    /// The type that training computes in
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
    /// Layers keep their input alone, and the backward pass computes the rest again
    #[arg(long)]
    recompute_layers: bool,
    /// Estimate as for a GPU, whatever --backend is
    #[arg(long)]
    on_gpu: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Optimizer {
    Adafactor,
    #[value(name = "adamw")]
    AdamW,
}

impl TrainingArgs {
    fn workload(&self, args: &InspectArgs, device: &Device) -> anyhow::Result<Workload> {
        let precision = self.precision;
        anyhow::ensure!(
            precision.trains(),
            "--precision {}: no model is trained so",
            precision.name()
        );
        Ok(Workload {
            shape: StepShape {
                batch_size: self.batch_size,
                input_length: args.input_length,
                target_length: args.target_length,
                padded: self.padded,
                value_bytes: precision.dtype().size() as u64,
                on_gpu: self.on_gpu || is_gpu(device),
                recompute_layers: self.recompute_layers,
            },
            precision,
            optimizer: match self.optimizer {
                Optimizer::Adafactor => OptimizerKind::Adafactor,
                Optimizer::AdamW => OptimizerKind::AdamW,
            },
            gradient_accumulation: self.gradient_accumulation as usize,
        })
    }
}

pub(super) fn run(args: InspectArgs) -> anyhow::Result<()> {
    let device = args.backend.open()?;
    let (config, model, trained) = match (&args.model, &args.size) {
        (Some(path), _) => {
            let (config, model) = ModelSource::find(path)?.load(&device)?;
            (config, model, true)
        }
        (None, name) => {
            let config =
                named(name.as_deref().unwrap_or_default(), args.blocks, args.variant.as_deref())?;
            let model = config.build(&device);
            (config, model, false)
        }
    };
    let table = parameter_table(&parameters(&model));
    let tokens = args.input_length + args.target_length;
    let workload = args.training.workload(&args, &device)?;
    let memory = MemoryEstimate::new(&config, &workload, |_| true);
    let costs = forward_cost(&config, args.input_length, args.target_length);
    let (coefficients, sequence) = match trained {
        true => (coefficients(&model), sequence_coefficients(&model)),
        false => (Vec::new(), Vec::new()),
    };
    if args.json {
        let part = |cost: &altup_models::PartCost| {
            json!({
                "part": cost.part,
                "flops_per_token": cost.flops as f64 / tokens as f64,
            })
        };
        return Ok(output::json(&json!({
            "config": config,
            "parameters": table,
            "total_parameters": table.values().sum::<usize>(),
            "active_parameters": active_parameters(&config, &table),
            "input_length": args.input_length,
            "target_length": args.target_length,
            "forward": costs.iter().map(part).collect::<Vec<_>>(),
            "training_memory": memory,
            "altup": coefficients,
            "sequence_altup": sequence,
        }))?);
    }
    output::line(&headline(&config))?;
    output::line("\nparameters")?;
    for (part, count) in &table {
        output::line(&format!("  {part:<26} {count:>13}  {:>7}", format_count(*count as u64)))?;
    }
    let total: usize = table.values().sum();
    output::line(&format!("  {:<26} {total:>13}  {:>7}", "total", format_count(total as u64)))?;
    let active = active_parameters(&config, &table);
    if active != total {
        let count = format_count(active as u64);
        output::line(&format!("  {:<26} {active:>13}  {count:>7}", "active for a token"))?;
    }

    output::line(&format!(
        "\nforward pass of one example ({} input and {} target tokens), FLOPs per token",
        args.input_length, args.target_length
    ))?;
    let row = |part: &str, flops: u64| {
        output::line(&format!("  {part:<26} {:>13.0}", flops as f64 / tokens as f64))
    };
    for cost in &costs {
        row(cost.part, cost.flops)?;
    }
    row("total", costs.iter().map(|cost| cost.flops).sum())?;
    print_memory(&workload, &memory)?;
    print_coefficients(&coefficients)?;
    print_sequence_coefficients(&sequence)
}

fn print_memory(workload: &Workload, memory: &MemoryEstimate) -> anyhow::Result<()> {
    let shape = &workload.shape;
    let again = if shape.recompute_layers { ", layers computed again" } else { "" };
    output::line(&format!(
        "\ntraining with batches of {} × {} and {} tokens ({}{again}), memory by arithmetic",
        shape.batch_size,
        shape.input_length,
        shape.target_length,
        workload.precision.name()
    ))?;
    let MemoryEstimate { weights, gradients, optimizer, activations, logits, peak } = *memory;
    for (name, bytes) in [
        ("weights", weights),
        ("gradients", gradients),
        ("optimizer", optimizer),
        ("activations", activations),
        ("logits", logits),
        ("at once, at the most", peak),
    ] {
        output::line(&format!("  {name:<26} {:>13}", format_bytes(bytes)))?;
    }
    Ok(())
}

fn named(name: &str, blocks: Option<usize>, variant: Option<&str>) -> anyhow::Result<T5Config> {
    let mut config = size(name).with_context(|| {
        format!(
            "there is no size {name:?}; there are {}",
            size_names().collect::<Vec<_>>().join(", ")
        )
    })?;
    if let Some(label) = variant {
        return labelled(config, label).with_context(|| {
            format!("--variant {label}: no model has this label; examples are dense, altup-k2, recycled-k2, altup-k2-moe32")
        });
    }
    config.altup = blocks.map(|num_blocks| AltUpModelConfig {
        num_blocks,
        selection: Default::default(),
        widening: Default::default(),
        encoder_sequence: None,
    });
    config.validate()?;
    Ok(config)
}

pub(super) fn headline(config: &T5Config) -> String {
    let mut parts = Vec::new();
    if let Some(altup) = &config.altup {
        parts.push(format!(
            "AltUp with {} blocks ({:?} selection, {:?} widening)",
            altup.num_blocks, altup.selection, altup.widening
        ));
        if let Some(sequence) = &altup.encoder_sequence {
            let layers = sequence.layers(config.num_layers);
            parts.push(format!(
                "{:?} of stride {} in encoder layers {} to {}",
                sequence.method,
                sequence.stride,
                layers.start(),
                layers.end()
            ));
        }
    }
    if let Some(moe) = &config.moe {
        parts.push(format!(
            "{} experts of width {} ({:?})",
            moe.num_experts, moe.expert_d_ff, moe.mode
        ));
    }
    let altup = if parts.is_empty() { "dense".to_owned() } else { parts.join(", ") };
    format!(
        "T5, {altup}: {}+{} layers, d_model {}, {} heads of {}, d_ff {}, vocabulary {}",
        config.num_layers,
        config.decoder_layers(),
        config.d_model,
        config.num_heads,
        config.d_kv,
        config.d_ff,
        config.vocab_size
    )
}

/// The parameters that compute on a token: of the experts only those that it is routed to.
fn active_parameters(config: &T5Config, table: &BTreeMap<&'static str, usize>) -> usize {
    let total: usize = table.values().sum();
    let Some(moe) = &config.moe else { return total };
    let experts = table.get("experts").copied().unwrap_or_default();
    total - experts + experts / moe.num_experts * moe.top_k
}

fn parameter_table(parameters: &[ParameterInfo]) -> BTreeMap<&'static str, usize> {
    let mut table = BTreeMap::new();
    for parameter in parameters {
        *table.entry(part(parameter)).or_insert(0) += parameter.size();
    }
    table
}

/// The part of a model that a parameter is counted to.
fn part(parameter: &ParameterInfo) -> &'static str {
    let in_encoder = parameter.stack == Some(Stack::Encoder);
    match parameter.role {
        Role::EmbeddingTable => "embedding table",
        Role::OutputTable => "output table",
        Role::PredictionCoefs
        | Role::CorrectionCoefs
        | Role::SequencePredictionCoefs
        | Role::SequenceCorrectionCoef => "AltUp coefficients",
        Role::Router => "routers",
        Role::ExpertsInput | Role::ExpertsOutput => "experts",
        Role::SubLayerNorm | Role::FinalNorm => "norms",
        Role::PositionBias => "relative position biases",
        Role::Query(kind) | Role::Key(kind) | Role::Value(kind) | Role::AttentionOutput(kind) => {
            match kind {
                AttentionKind::CrossAttention => "decoder cross-attention",
                AttentionKind::SelfAttention if in_encoder => "encoder self-attention",
                AttentionKind::SelfAttention => "decoder self-attention",
            }
        }
        Role::FeedForwardInput | Role::FeedForwardOutput if in_encoder => "encoder feed-forward",
        Role::FeedForwardInput | Role::FeedForwardOutput => "decoder feed-forward",
    }
}

/// The coefficients (a₁, a₂) and b of each encoder layer that has any.
fn sequence_coefficients(model: &T5) -> Vec<Value> {
    let numbers = |param: Tensor<1>| param.into_data().iter::<f32>().collect::<Vec<_>>();
    let layers = model.encoder.blocks.iter().enumerate();
    layers
        .filter_map(|(layer, block)| {
            let Some(Reduction::SequenceAltUp(sequence)) = &block.reduction else { return None };
            let (a, b) = (sequence.prediction_coefs.val(), sequence.correction_coef.val());
            Some(json!({ "layer": layer, "a": numbers(a), "b": numbers(b) }))
        })
        .collect()
}

/// The coefficients p and g of each layer that has any.
fn coefficients(model: &T5) -> Vec<Value> {
    let values = |altup: &altup_core::AltUp| {
        let p: Vec<f32> = altup.prediction_coefs.val().into_data().iter::<f32>().collect();
        let g: Vec<f32> = altup.correction_coefs.val().into_data().iter::<f32>().collect();
        (p.chunks(g.len()).map(<[f32]>::to_vec).collect::<Vec<_>>(), g)
    };
    let encoder = model.encoder.blocks.iter().map(|block| ("encoder", &block.altup));
    let decoder = model.decoder.blocks.iter().map(|block| ("decoder", &block.altup));
    let layers = encoder.enumerate().chain(decoder.enumerate());
    layers
        .filter_map(|(layer, (stack, altup))| {
            let (p, g) = values(altup.as_ref()?);
            Some(json!({ "stack": stack, "layer": layer, "p": p, "g": g }))
        })
        .collect()
}

fn numbers(row: &Value) -> String {
    let row = row.as_array().into_iter().flatten();
    row.map(|value| format!("{:>8.3}", value.as_f64().unwrap_or(f64::NAN))).collect()
}

fn print_sequence_coefficients(layers: &[Value]) -> anyhow::Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    output::line("\nSequence-AltUp coefficients: a, then b")?;
    for layer in layers {
        let name = format!("encoder {}", layer["layer"]);
        let (a, b) = (numbers(&layer["a"]), numbers(&layer["b"]));
        output::line(&format!("  {name:<11} [{a} ]  [{b} ]"))?;
    }
    Ok(())
}

fn print_coefficients(layers: &[Value]) -> anyhow::Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    output::line("\nAltUp coefficients: rows of p, then g")?;
    for layer in layers {
        let name = format!("{} {}", layer["stack"].as_str().unwrap_or_default(), layer["layer"]);
        let rows: Vec<String> = layer["p"].as_array().into_iter().flatten().map(numbers).collect();
        output::line(&format!("  {name:<11} [{} ]  [{} ]", rows.join(" ;"), numbers(&layer["g"])))?;
    }
    Ok(())
}
