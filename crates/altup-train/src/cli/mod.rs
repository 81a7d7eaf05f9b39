//! The command line. One subcommand is one file.

mod convert;
mod evaluate;
mod forward;
mod generate;
mod inspect;
mod model_source;
pub(crate) mod output;
mod report;
mod sizes;
mod train;
mod variant;

use altup_train::device::DeviceName;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// AltUp T5 models: widened representations at almost the cost of a dense model.
#[derive(Parser)]
#[command(name = "altup", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Evaluate(evaluate::EvaluateArgs),
    Generate(generate::GenerateArgs),
    Convert(convert::ConvertArgs),
    Forward(forward::ForwardArgs),
    Inspect(inspect::InspectArgs),
    Report(report::ReportArgs),
    Sizes(sizes::SizesArgs),
}

/// Where a model runs.
#[derive(Args)]
struct BackendArgs {
    /// The backend, with the index of a device where it has several (cuda:1): flex, ndarray, wgpu,
    /// vulkan, tch or cuda
    #[arg(long, default_value_t, value_name = "BACKEND")]
    backend: DeviceName,
}

/// Where prepared data is kept.
#[derive(Args)]
struct CacheArgs {
    /// Where tokenized corpora are kept for the next run [default: the user's cache folder]
    #[arg(long, env = "ALTUP_CACHE", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl CacheArgs {
    fn folder(&self) -> PathBuf {
        let in_home = || Some(std::env::home_dir()?.join(".cache"));
        let user_cache = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(in_home);
        self.cache_dir
            .clone()
            .unwrap_or_else(|| user_cache().unwrap_or_else(std::env::temp_dir).join("altup"))
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Train(args) => train::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Forward(args) => forward::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Report(args) => report::run(args),
        Command::Sizes(args) => sizes::run(args),
    }
}
