//! How fast text is prepared, beside the `tokenizers` crate's own batches on the same text.
//!
//! ```sh
//! cargo run --release -p altup-data --example tokenizing_rate -- [--json] TOKENIZER_JSON THREADS SOURCE...
//! ```
//!
//! The three take turns, in another order each round. Preparation reads, unpacks, hashes, tokenises and writes; the crate
//! tokenises text that is in memory already, 1,000 documents a batch, with the places of tokens in the text
//! (`encode_batch`) or without (`encode_batch_fast`).

#![allow(clippy::print_stdout)] // what an example is for

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use altup_data::{Corpus, PrepareOptions, TextTokenizer, TokenStore};
use serde_json::json;
use tokenizers::Tokenizer;

const ROUNDS: usize = 5;
const DOCUMENTS_AT_ONCE: usize = 1000;
const SIDES: [&str; 3] = ["prepare", "encode_batch", "encode_batch_fast"];

/// The same text on the disk and in memory.
struct Text<'a> {
    tokenizer: &'a Path,
    workers: usize,
    corpus: Corpus,
    documents: Vec<String>,
}

impl Text<'_> {
    /// How many tokens a side makes of it.
    fn tokens(&self, side: &str) -> Result<u64, Box<dyn Error + Send + Sync>> {
        if side == "prepare" {
            let tokenizer = TextTokenizer::load(self.tokenizer)?;
            let folder = tempfile::tempdir()?;
            let options = PrepareOptions { workers: self.workers, ..PrepareOptions::default() };
            let store = TokenStore::new(folder.path());
            return Ok(store.prepare(&self.corpus, &tokenizer, options, &mut |_| ())?.len());
        }
        let tokenizer = Tokenizer::from_file(self.tokenizer)?;
        let mut tokens = 0;
        for batch in self.documents.chunks(DOCUMENTS_AT_ONCE) {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            let encodings = match side {
                "encode_batch" => tokenizer.encode_batch(batch, false)?,
                _ => tokenizer.encode_batch_fast(batch, false)?,
            };
            tokens += encodings.iter().map(|encoding| encoding.len() as u64).sum::<u64>();
        }
        Ok(tokens)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let as_json = args.first().is_some_and(|arg| arg == "--json");
    if as_json {
        args.remove(0);
    }
    let [file, threads, sources @ ..] = args.as_slice() else {
        return Err("usage: tokenizing_rate [--json] TOKENIZER_JSON THREADS SOURCE...".into());
    };
    let workers: usize = threads.parse()?;
    rayon::ThreadPoolBuilder::new().num_threads(workers).build_global()?;
    let corpus = Corpus::open(sources)?;
    let documents = corpus.documents().map(|document| document.map(|document| document.text));
    let documents: Vec<String> = documents.collect::<Result<_, _>>()?;
    let megabytes = documents.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    if !as_json {
        println!("{megabytes:.1} MB of text, {} documents, {workers} threads", documents.len());
    }

    let text = Text { tokenizer: Path::new(file), workers, corpus, documents };
    let mut rates = [const { Vec::new() }; SIDES.len()];
    let mut tokens = [0; SIDES.len()];
    for round in 0..ROUNDS {
        for turn in 0..SIDES.len() {
            let side = (round + turn) % SIDES.len();
            let started = Instant::now();
            tokens[side] = text.tokens(SIDES[side])?;
            let rate = megabytes / started.elapsed().as_secs_f64();
            rates[side].push(rate);
            if !as_json {
                println!("round {}: {} {rate:.2} MB/s", round + 1, SIDES[side]);
            }
        }
    }
    if as_json {
        let sides = SIDES.iter().zip(&rates).zip(tokens).map(|((side, rates), tokens)| {
            json!({"side": side, "megabytes_per_second": rates, "tokens": tokens})
        });
        let sides: Vec<_> = sides.collect();
        println!("{}", json!({"megabytes": megabytes, "threads": workers, "sides": sides}));
        return Ok(());
    }
    let prepared = median(&rates[0]);
    for ((side, rates), tokens) in SIDES.iter().zip(&rates).zip(tokens) {
        let (rate, ratio) = (median(rates), prepared / median(rates));
        println!("{side}: median {rate:.2} MB/s, {tokens} tokens; preparation is {ratio:.3} of it");
    }
    Ok(())
}
