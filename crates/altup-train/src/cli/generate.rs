use altup_models::generate_greedy;
use altup_train::filling::fill_blanks;
use clap::Args;
use serde::Serialize;
use std::io::BufRead;
use std::path::PathBuf;

use super::model_source::ModelSource;
use super::{BackendArgs, output};

/// Fill the blanks of texts: `altup generate --model DIR "The <extra_id_0> sat on the mat."`
#[derive(Args)]
pub(super) struct GenerateArgs {
    /// A model directory, or the folder of a run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The texts, with <extra_id_0>, <extra_id_1>, … for the blanks [default: the lines of standard
    /// input]
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Print one JSON object a text: prompt, target, filled
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

/// What a model made of a text.
#[derive(Serialize)]
struct Generated<'a> {
    prompt: &'a str,
    target: String,
    filled: String,
}

pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let source = ModelSource::find(&args.model)?;
    let device = args.backend.backend.open()?;
    let (config, model) = source.load(&device)?;
    let tokenizer = source.tokenizer()?;
    let generate = |prompt: &str| -> anyhow::Result<()> {
        let mut input = tokenizer.encode(prompt)?;
        input.push(tokenizer.eos_id());
        if let Some(id) = input.iter().find(|&&id| id as usize >= config.vocab_size) {
            anyhow::bail!(
                "the tokenizer gives the id {id}, beyond the model's vocabulary of {}",
                config.vocab_size
            );
        }
        let eos = tokenizer.eos_id();
        let generated = generate_greedy(&model, &[input.clone()], eos, args.max_new_tokens);
        let target = generated.into_iter().next().unwrap_or_default();
        let filled = fill_blanks(&input, &target, tokenizer.sentinels());
        let text = |ids: &[u32]| {
            let ids: Vec<u32> = ids.iter().copied().filter(|&id| id != eos).collect();
            tokenizer.decode(&ids, false)
        };
        let generated = Generated { prompt, target: text(&target)?, filled: text(&filled)? };
        if args.json {
            output::json(&generated)?;
        } else if input.iter().any(|id| tokenizer.sentinels().contains(id)) {
            output::line(&generated.filled)?;
        } else {
            output::line(&generated.target)?;
        }
        Ok(())
    };
    if args.texts.is_empty() {
        for line in std::io::stdin().lock().lines() {
            generate(&line?)?;
        }
        return Ok(());
    }
    args.texts.iter().try_for_each(|text| generate(text))
}
