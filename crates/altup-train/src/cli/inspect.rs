use altup_models::{
    AltUpModelConfig, AttentionKind, ParameterInfo, Reduction, Role, Stack, T5, T5Config,
    forward_cost, parameters, size, size_names,
};
use altup_train::progress::format_count;
use anyhow::Context;
use burn::tensor::Tensor;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::model_source::ModelSource;
use super::{BackendArgs, output};

/// Show what a model is made of: parameters, FLOPs and activation bytes by part, and the
/// coefficients of its AltUp
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
    /// Input tokens of an example
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    input_length: u64,
    /// Target tokens of an example
    #[arg(long, default_value_t = 114, value_name = "TOKENS")]
    target_length: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

pub(super) fn run(args: InspectArgs) -> anyhow::Result<()> {
    let device = args.backend.open()?;
    let (config, model, trained) = match (&args.model, &args.size) {
        (Some(path), _) => {
            let (config, model) = ModelSource::find(path)?.load(&device)?;
            (config, model, true)
        }
        (None, name) => {
            let config = named(name.as_deref().unwrap_or_default(), args.blocks)?;
            let model = config.build(&device);
            (config, model, false)
        }
    };
    let table = parameter_table(&parameters(&model));
    let tokens = args.input_length + args.target_length;
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
                "activation_bytes_per_token": cost.activation_bytes as f64 / tokens as f64,
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
        "\nforward pass of one example ({} input and {} target tokens), per token\n  \
         {:<26} {:>13} {:>17}",
        args.input_length, args.target_length, "", "FLOPs", "activation bytes"
    ))?;
    let per_token = |value: u64| value as f64 / tokens as f64;
    let row = |part: &str, flops: u64, bytes: u64| {
        let (flops, bytes) = (per_token(flops), per_token(bytes));
        output::line(&format!("  {part:<26} {flops:>13.0} {bytes:>17.0}"))
    };
    for cost in &costs {
        row(cost.part, cost.flops, cost.activation_bytes)?;
    }
    let sum = |value: fn(&altup_models::PartCost) -> u64| costs.iter().map(value).sum();
    row("total", sum(|cost| cost.flops), sum(|cost| cost.activation_bytes))?;
    print_coefficients(&coefficients)?;
    print_sequence_coefficients(&sequence)
}

fn named(name: &str, blocks: Option<usize>) -> anyhow::Result<T5Config> {
    let mut config = size(name).with_context(|| {
        format!(
            "there is no size {name:?}; there are {}",
            size_names().collect::<Vec<_>>().join(", ")
        )
    })?;
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
