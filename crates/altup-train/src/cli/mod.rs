//! The command line. One subcommand is one file.

mod backends;
mod bench;
mod convert;
mod data;
mod download;
mod evaluate;
mod evaluate_tasks;
mod finetune;
mod forward;
mod generate;
mod inspect;
mod model_source;
pub(crate) mod output;
mod replicas;
mod report;
mod sizes;
mod start;
mod start_fine_tuning;
mod stop;
mod study;
mod tasks;
mod train;

use altup_models::T5;
use altup_train::device::DeviceName;
use altup_train::precision::Precision;
use burn::tensor::Device;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    Finetune(finetune::FinetuneArgs),
    Data(data::DataArgs),
    Evaluate(evaluate::EvaluateArgs),
    Generate(generate::GenerateArgs),
    Convert(convert::ConvertArgs),
    Forward(forward::ForwardArgs),
    Inspect(inspect::InspectArgs),
    Report(report::ReportArgs),
    Sizes(sizes::SizesArgs),
    Study(study::StudyArgs),
    Tasks(tasks::TasksArgs),
    Backends(backends::BackendsArgs),
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    Measure(bench::MeasureArgs),
}

/// Where a model runs.
#[derive(Args)]
struct BackendArgs {
    /// The backend, with the index of a device where it has several (cuda:1): flex, ndarray, wgpu,
    /// vulkan, tch or cuda; `altup backends` lists what this machine has
    #[arg(long, default_value_t, value_name = "BACKEND")]
    backend: DeviceName,
}

impl BackendArgs {
    /// The device.
    ///
    /// # Errors
    ///
    /// If it can't be had; another one never takes its place.
    fn open(&self) -> anyhow::Result<Device> {
        backends::open(&self.backend)
    }
}

/// What a model computes in.
#[derive(Args)]
struct PrecisionArgs {
    /// The type of weights and activations; the files stay what they are
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
}

impl PrecisionArgs {
    /// The model to compute with.
    ///
    /// # Errors
    ///
    /// If its device does not compute in the type.
    fn apply(&self, model: T5) -> anyhow::Result<T5> {
        self.precision.check(&model.device())?;
        Ok(self.precision.to_compute(&model))
    }
}

/// Whether a file that is there may be replaced.
#[derive(Args)]
struct OverwriteArgs {
    /// Replace what is there
    #[arg(long)]
    overwrite: bool,
}

impl OverwriteArgs {
    /// # Errors
    ///
    /// If there is something at `path`, and it may not be replaced.
    fn check(&self, path: &Path) -> anyhow::Result<()> {
        let name = path.display();
        let free = self.overwrite || !path.exists();
        anyhow::ensure!(free, "{name} exists already: name another place, or --overwrite it");
        Ok(())
    }
}

/// Where prepared data is kept.
#[derive(Args)]
struct CacheArgs {
    /// Where tokenized corpora are kept for the next run [default: `altup` in the user's cache folder]
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

/// A number that goes into a configuration: TOML's have a sign.
fn config_number<T>() -> RangedU64ValueParser<T>
where
    T: TryFrom<u64> + Clone + Send + Sync,
    <T as TryFrom<u64>>::Error: std::error::Error + Send + Sync + 'static,
{
    RangedU64ValueParser::new().range(..=i64::MAX as u64)
}

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let command = Cli::parse().command;
    // Replicas share a machine, and set themselves up once they have met.
    if !matches!(command, Command::Train(_) | Command::Finetune(_) | Command::Bench(_)) {
        altup_train::process::set_up();
    }
    let done = match command {
        Command::Train(args) => return replicas::together(|replicas| train::run(args, replicas)),
        Command::Finetune(args) => {
            return replicas::together(|replicas| finetune::run(args, replicas));
        }
        Command::Data(args) => data::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Forward(args) => forward::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Report(args) => report::run(args),
        Command::Sizes(args) => sizes::run(args),
        Command::Study(args) => return study::run(args),
        Command::Tasks(args) => tasks::run(args),
        Command::Backends(args) => backends::run(args),
        Command::Bench(args) => return bench::run(args),
        Command::Measure(args) => bench::measure(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}
