//! Greedy decoding with candle-transformers: the peer of the bench `decoding`.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/candle/Cargo.toml --target-dir target -- \
//!     --model DIR --inputs inputs.json --new-tokens 64 --batch-size 1 --repeats 3 --json
//! ```
//!
//! `inputs.json` holds rows of token ids of one length: candle's T5 has no mask for padding. The
//! first `--batch-size` of them are decoded. Seconds are those of encoder and decoder together,
//! after a decoding that warms up.
//!
//! candle caches the keys and values of the self-attention only; it projects the encoder's output
//! to those of the cross-attention again for every token.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5::{Config, T5ForConditionalGeneration};
use clap::Parser;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

const PROGRAM: &str = concat!("candle-transformers ", env!("CARGO_PKG_VERSION"));

#[derive(Parser)]
struct Args {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    inputs: PathBuf,
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Print one JSON line.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let Args { model, inputs, new_tokens, batch_size, repeats, json } = Args::parse();
    let device = Device::Cpu;
    let config: Config = serde_json::from_slice(&std::fs::read(model.join("config.json"))?)?;
    let weights = std::fs::read(model.join("model.safetensors"))?;
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &device)?;
    let mut model = T5ForConditionalGeneration::load(weights, &config)?;

    let mut rows: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(&inputs)?)?;
    ensure!(rows.len() >= batch_size, "{} has only {} rows", inputs.display(), rows.len());
    rows.truncate(batch_size);
    let input_ids = Tensor::new(rows, &device)?;

    let tokens = decode(&mut model, &config, &input_ids, new_tokens)?;
    let mut seconds = Vec::new();
    for _ in 0..repeats {
        let started = Instant::now();
        let repeated = decode(&mut model, &config, &input_ids, new_tokens)?;
        seconds.push(started.elapsed().as_secs_f64());
        ensure!(repeated == tokens, "a repeat decoded other tokens");
    }

    if json {
        println!(
            "{}",
            json!({
                "program": PROGRAM,
                "batch_size": batch_size,
                "new_tokens": new_tokens,
                "seconds": seconds,
                "tokens": tokens,
            })
        );
    } else {
        seconds.sort_by(f64::total_cmp);
        let rate = (batch_size * new_tokens) as f64 / seconds[seconds.len() / 2];
        println!("{PROGRAM}, batch size {batch_size}: {rate:.1} tokens/s");
    }
    Ok(())
}

/// The likeliest `new_tokens` tokens of each row. None of them is the end-of-sequence token.
fn decode(
    model: &mut T5ForConditionalGeneration,
    config: &Config,
    input_ids: &Tensor,
    new_tokens: usize,
) -> Result<Vec<Vec<u32>>> {
    let mut suppressed = vec![0f32; config.vocab_size];
    suppressed[config.eos_token_id] = f32::NEG_INFINITY;
    let suppressed = Tensor::new(suppressed, input_ids.device())?;

    model.clear_kv_cache();
    let memory = model.encode(input_ids)?;
    let start = config.decoder_start_token_id.unwrap_or(config.pad_token_id) as u32;
    let mut next = Tensor::full(start, (input_ids.dim(0)?, 1), input_ids.device())?;
    let mut tokens = Vec::new();
    for _ in 0..new_tokens {
        let logits = model.decode(&next, &memory)?.broadcast_add(&suppressed)?;
        next = logits.argmax_keepdim(D::Minus1)?;
        tokens.push(next.clone());
    }
    Ok(Tensor::cat(&tokens, 1)?.to_vec2()?)
}
