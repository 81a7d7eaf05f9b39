//! Loads a model directory and fills a blank: token by token, by beam search, and by sampling.
//!
//! ```sh
//! cargo run --release -- train                                # writes runs/tiny-altup-k2-seed0/model
//! cargo run --release -p altup-examples --bin load_and_generate
//! cargo run --release -p altup-examples --bin load_and_generate DIR "A text with <extra_id_0>."
//! ```
//!
//! DIR may be any Hugging Face directory of a T5 with a `tokenizer.json`.

use altup_data::TextTokenizer;
use altup_models::{
    BeamSearch, GenerationConfig, ModelDirectory, Sampling, Strategy, generate, stream,
};
use altup_train::filling::fill_blanks;
use anyhow::Context;
use burn::tensor::Device;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "runs/tiny-altup-k2-seed0/model".into());
    let text = arguments.next().unwrap_or_else(|| "let <extra_id_0> = Vec::new();".into());

    let directory = ModelDirectory::new(&path);
    let (_, model) = directory.load(&Device::flex()).with_context(|| {
        format!("no model in {path}: train one with `cargo run --release -- train`")
    })?;
    let tokenizer = TextTokenizer::load(&directory.tokenizer())?;
    let mut input = tokenizer.encode(&text)?;
    input.push(tokenizer.eos_id());
    let inputs = [input];

    // Greedy, token by token. A target says for each sentinel what belongs in its place.
    let greedy = GenerationConfig::greedy(32);
    let mut decode = tokenizer.stream_decoder();
    print!("target   ");
    for step in stream(&model, &inputs, &greedy)? {
        if let Some(token) = step?[0]
            && token != tokenizer.eos_id()
            && let Some(piece) = decode(token)?
        {
            print!("{piece}");
        }
    }
    println!();

    let beams = Strategy::BeamSearch(BeamSearch { num_beams: 4, ..BeamSearch::default() });
    let samples = Strategy::Sampling(Sampling { top_p: 0.9, ..Sampling::default() });
    for (name, strategy) in [("beam", beams), ("sample", samples)] {
        let settings = GenerationConfig { num_return_sequences: 3, strategy, ..greedy.clone() };
        for target in &generate(&model, &inputs, &settings)?[0] {
            let mut filled = fill_blanks(&inputs[0], &target.tokens, tokenizer.sentinels());
            filled.retain(|&token| token != tokenizer.eos_id());
            let score = target.score.map_or_else(String::new, |score| format!("  ({score:.2})"));
            println!("{name:<8} {}{score}", tokenizer.decode(&filled, false)?);
        }
    }
    Ok(())
}
