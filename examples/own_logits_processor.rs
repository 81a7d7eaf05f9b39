//! Logits processors of one's own: rules for which token may come next, under every strategy.
//!
//! The model is a tiny T5 with fresh parameters, so its targets mean nothing.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin own_logits_processor
//! ```

use altup_models::{
    BeamSearch, GenerationConfig, Generator, LogitsProcessor, PartialTarget, Sampling, Strategy,
    T5Config, size,
};
use burn::tensor::Device;

/// No sequence of `length` tokens occurs twice (Hugging Face's `no_repeat_ngram_size`).
struct NoRepeatNgram {
    length: usize,
}

impl LogitsProcessor for NoRepeatNgram {
    fn process(&self, target: &PartialTarget<'_>, scores: &mut [f64]) {
        let tokens = target.tokens;
        if self.is_idle(tokens.len()) {
            return;
        }
        let last = &tokens[tokens.len() + 1 - self.length..];
        for earlier in tokens.windows(self.length) {
            let (start, next) = earlier.split_at(self.length - 1);
            if start == last {
                scores[next[0] as usize] = f64::NEG_INFINITY;
            }
        }
    }

    // Greedy decoding need not read all logits while nothing can repeat.
    fn is_idle(&self, step: usize) -> bool {
        step < self.length
    }
}

/// A closure does where no state is needed: only tokens of the input, among them the end token.
fn only_tokens_of_the_input(target: &PartialTarget, scores: &mut [f64]) {
    for (token, score) in scores.iter_mut().enumerate() {
        if !target.input.contains(&(token as u32)) {
            *score = f64::NEG_INFINITY;
        }
    }
}

fn main() -> anyhow::Result<()> {
    let config = T5Config { vocab_size: 64, ..size("tiny").expect("a named size") };
    let model = config.init(7, &Device::flex());
    let inputs = [vec![12, 31, 8, 45, 1]];

    let strategies = [
        ("greedy", Strategy::Greedy),
        ("sampling", Strategy::Sampling(Sampling { temperature: 0.1, ..Sampling::default() })),
        ("beam search", Strategy::BeamSearch(BeamSearch::default())),
    ];
    for (name, strategy) in strategies {
        let settings = GenerationConfig { strategy, ..GenerationConfig::greedy(16) };
        let plain = Generator::new(&model, &settings)?;
        let no_repeat = plain.clone().with_processor(NoRepeatNgram { length: 2 });
        let copies = no_repeat.clone().with_processor(only_tokens_of_the_input);
        println!("{name}");
        for (rules, generator) in
            [("none", plain), ("no pair twice", no_repeat), ("and of the input", copies)]
        {
            let target = &generator.generate(&inputs)?[0][0];
            println!("  {rules:<17} {:?}", target.tokens);
        }
    }

    // Rules that leave nothing are an error, not a panic.
    let nothing = |_: &PartialTarget, scores: &mut [f64]| scores.fill(f64::NEG_INFINITY);
    let generator = Generator::new(&model, &GenerationConfig::greedy(16))?.with_processor(nothing);
    match generator.generate(&inputs) {
        Ok(targets) => anyhow::bail!("generated {targets:?} of no token at all"),
        Err(error) => println!("nothing allowed\n  {error}"),
    }
    Ok(())
}
