use altup_data::TextTokenizer;
use altup_models::{
    BeamSearch, EarlyStopping, Generated, GenerationConfig, GenerationError, Generator, Sampling,
    Strategy, T5,
};
use altup_train::filling::{BlankFilling, fill_blanks, least_new_tokens};
use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use super::model_source::ModelSource;
use super::{BackendArgs, PrecisionArgs, output};

/// Fill the blanks of texts: `altup generate --model DIR "The <extra_id_0> sat on the mat."`
#[derive(Args)]
pub(super) struct GenerateArgs {
    /// A model directory, the folder of a run, or the name of a model on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The texts, with <extra_id_0>, <extra_id_1>, … for the blanks [default: the lines of standard
    /// input]
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    texts: Vec<String>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Texts that go through the model at once [default: 8, and 1 of standard input]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: Option<u64>,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_new_tokens: usize,
    /// Tokens to generate at least
    #[arg(long, default_value_t = 0, value_name = "N")]
    min_new_tokens: usize,
    /// What makes a token less likely that the target has already; 1 is no penalty
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    repetition_penalty: f64,
    /// Targets for each text: the best of a beam search, or as many samples
    #[arg(long, default_value_t = 1, value_name = "N")]
    num_return_sequences: usize,
    /// Search for the likeliest target with this many beams
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// In a beam search, the power of the length that a target's log-probability is divided by
    #[arg(long, default_value_t = 1.0, requires = "num_beams", value_name = "POWER")]
    length_penalty: f64,
    /// When a beam search is done that has as many ended targets as beams
    #[arg(long, value_enum, default_value_t = Stopping::Heuristic, requires = "num_beams")]
    early_stopping: Stopping,
    /// Draw tokens at random, by their probability
    #[arg(long, conflicts_with = "num_beams")]
    sample: bool,
    /// In sampling, what logits are divided by: below 1 favours likely tokens
    #[arg(long, default_value_t = 1.0, requires = "sample")]
    temperature: f64,
    /// In sampling, draw from the K likeliest tokens only
    #[arg(long, requires = "sample", value_name = "K")]
    top_k: Option<usize>,
    /// In sampling, draw from the likeliest tokens only that together have this probability
    #[arg(long, default_value_t = 1.0, requires = "sample", value_name = "P")]
    top_p: f64,
    /// The seed of the samples
    #[arg(long, default_value_t = 0, requires = "sample")]
    seed: u64,
    /// Print the target as it comes, token by token, with its sentinels
    #[arg(long, conflicts_with_all = ["num_beams", "json", "num_return_sequences", "batch_size"])]
    stream: bool,
    /// Print one JSON object a target: prompt, target, filled, and in a beam search its score
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

/// When a beam search is done with a text that has as many ended targets as beams.
#[derive(Clone, Copy, ValueEnum)]
enum Stopping {
    /// At once
    Immediate,
    /// When the best running target, at its present length, doesn't beat the worst of them
    Heuristic,
    /// When no running target could beat the worst of them at any length
    Never,
}

/// What a model made of a text.
#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    target: String,
    filled: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let generation = generation_config(&args);
    generation.validate()?;
    let source = ModelSource::find(&args.model)?;
    let device = args.backend.open()?;
    let (_, model) = source.load(&device)?;
    let model = args.precision.apply(model)?;
    let tokenizer = source.tokenizer()?;
    let filling = BlankFilling::new(&tokenizer, generation.max_new_tokens)?;
    let generator = Generator::new(&model, &generation)?.with_processor(filling);
    let (max_new_tokens, json) = (generation.max_new_tokens, args.json);
    let answers = Answers { generator, tokenizer, max_new_tokens, json };
    let default_size = if args.texts.is_empty() && args.file.is_none() { 1 } else { 8 };
    let batch_size = args.batch_size.map_or(default_size, |size| size as usize);
    let mut texts = texts(args.texts, args.file)?;
    loop {
        let batch: Vec<String> = texts.by_ref().take(batch_size).collect::<Result<_, _>>()?;
        if batch.is_empty() {
            return Ok(());
        }
        match args.stream {
            true => batch.iter().try_for_each(|text| answers.stream(text))?,
            false => answers.print(&batch)?,
        }
    }
}

fn generation_config(args: &GenerateArgs) -> GenerationConfig {
    let strategy = match args.num_beams {
        Some(num_beams) => Strategy::BeamSearch(BeamSearch {
            num_beams,
            length_penalty: args.length_penalty,
            early_stopping: match args.early_stopping {
                Stopping::Immediate => EarlyStopping::Immediate,
                Stopping::Heuristic => EarlyStopping::Heuristic,
                Stopping::Never => EarlyStopping::Never,
            },
        }),
        None if args.sample => Strategy::Sampling(Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        }),
        None => Strategy::Greedy,
    };
    GenerationConfig {
        max_new_tokens: args.max_new_tokens,
        min_new_tokens: args.min_new_tokens,
        repetition_penalty: args.repetition_penalty,
        num_return_sequences: args.num_return_sequences,
        strategy,
    }
}

type Texts = Box<dyn Iterator<Item = anyhow::Result<String>>>;

/// The texts of the arguments, of a file, or of standard input.
fn texts(texts: Vec<String>, file: Option<PathBuf>) -> anyhow::Result<Texts> {
    if let Some(path) = file {
        let name = path.display().to_string();
        let file = File::open(&path).with_context(|| format!("cannot read {name}"))?;
        return Ok(lines(BufReader::new(file), name));
    }
    if texts.is_empty() {
        return Ok(lines(BufReader::new(std::io::stdin()), "standard input".into()));
    }
    Ok(Box::new(texts.into_iter().map(Ok)))
}

fn lines(reader: impl BufRead + 'static, name: String) -> Texts {
    Box::new(reader.lines().enumerate().map(move |(number, line)| {
        line.with_context(|| format!("cannot read line {} of {name}", number + 1))
    }))
}

struct Answers<'a> {
    generator: Generator<'a, T5>,
    tokenizer: TextTokenizer,
    max_new_tokens: usize,
    json: bool,
}

impl Answers<'_> {
    /// Prints what the model makes of each text.
    fn print(&self, texts: &[String]) -> anyhow::Result<()> {
        let inputs =
            texts.iter().map(|text| self.encode(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let generated = self.generator.generate(&inputs).map_err(|error| match error.input() {
            Some(input) => about(error, &texts[input]),
            None => error.into(),
        })?;
        for ((prompt, input), targets) in texts.iter().zip(&inputs).zip(generated) {
            let is_filled = input.iter().any(|id| self.tokenizer.sentinels().contains(id));
            for Generated { tokens, score } in targets {
                let filled = fill_blanks(input, &tokens, self.tokenizer.sentinels());
                let (target, filled) = (self.decode(&tokens)?, self.decode(&filled)?);
                if self.json {
                    output::json(&Answer { prompt, target, filled, score })?;
                } else {
                    output::line(if is_filled { &filled } else { &target })?;
                }
            }
        }
        Ok(())
    }

    /// Prints a target as it comes.
    fn stream(&self, text: &str) -> anyhow::Result<()> {
        let input = [self.encode(text)?];
        let about = |error| about(error, text);
        let mut decode = self.tokenizer.stream_decoder();
        for step in self.generator.stream(&input).map_err(about)? {
            if let Some(token) = step.map_err(about)?[0]
                && token != self.tokenizer.eos_id()
                && let Some(piece) = decode(token)?
            {
                output::piece(&piece)?;
            }
        }
        Ok(output::line("")?)
    }

    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut input = self.tokenizer.encode(text)?;
        let needed = least_new_tokens(&input, self.tokenizer.sentinels());
        anyhow::ensure!(
            needed <= self.max_new_tokens,
            "cannot answer {}: to fill its {} blanks takes at least --max-new-tokens {needed}, not {}",
            start_of(text),
            needed / 2,
            self.max_new_tokens
        );
        input.push(self.tokenizer.eos_id());
        Ok(input)
    }

    fn decode(&self, ids: &[u32]) -> anyhow::Result<String> {
        let eos = self.tokenizer.eos_id();
        let ids: Vec<u32> = ids.iter().copied().filter(|&id| id != eos).collect();
        Ok(self.tokenizer.decode(&ids, false)?)
    }
}

/// Names the text that an error is about.
fn about(error: GenerationError, text: &str) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("cannot answer {}", start_of(text)))
}

/// A text in a message.
fn start_of(text: &str) -> String {
    const SHOWN: usize = 60;
    let start: String = text.chars().take(SHOWN).collect();
    let rest = if start.len() < text.len() { "…" } else { "" };
    format!("{start:?}{rest}")
}
