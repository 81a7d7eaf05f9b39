use altup_train::bench::comparison::{Plan, Side};
use altup_train::bench::exchange::{Exchanges, ModelExchange};
use altup_train::bench::kernels::{self, Kernels};
use altup_train::bench::measure::{self, StepOptions};
use altup_train::bench::{BenchBatch, Work, models, scaling};
use altup_train::device::{Backend, DeviceName, hardware_name};
use altup_train::machine::Machine;
use altup_train::precision::Precision;
use altup_train::process;
use altup_train::replicas::Replicas;
use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::replicas::{agreement_on, refuse_several, together};
use super::{BackendArgs, PrecisionArgs, backends, output};

/// Compare the speed of models on backends and in other programs, side by side
///
/// Every side runs in a process of its own, in turns; all must compute the same loss before any is timed. The exchange
/// between replicas is measured where they are: `mpirun -n 2 altup bench --works exchange`. Kernels are measured without
/// models, at the widths of one size.
#[derive(Args)]
pub(super) struct BenchArgs {
    /// Sizes of models (`altup sizes` lists them)
    #[arg(long, value_delimiter = ',', default_value = "tiny", value_name = "SIZES")]
    sizes: Vec<String>,
    /// Models at each size: dense, or altup-kK, sameup-kK, recycled-kK, sum-kK (K blocks), seqS (Sequence-AltUp of
    /// stride S), moeE (E experts), joined as in altup-k2-moe32; ratios are to the first
    #[arg(long, value_delimiter = ',', default_values_t = models::MODELS.map(String::from), value_name = "MODELS")]
    models: Vec<String>,
    /// Backends [default: those of the CPU that are compiled in]
    #[arg(long, value_delimiter = ',', value_name = "BACKENDS")]
    backends: Vec<DeviceName>,
    /// Another side, as NAME=COMMAND; the command is given the options of `altup measure` and must print
    /// what that prints. It is split at spaces. A model that it lacks is left out
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    peer: Vec<Side>,
    /// What is timed
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["forward", "train", "prefill", "decode"])]
    works: Vec<Asked>,
    /// Rows of a batch
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Tokens of an input
    #[arg(long, default_value_t = 512)]
    input_length: usize,
    /// Tokens of a target
    #[arg(long, default_value_t = 114)]
    target_length: usize,
    /// Tokens to decode for each row
    #[arg(long, default_value_t = 32)]
    new_tokens: usize,
    /// The vocabulary of the models [default: that of their size]
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Measure how the cost grows from the one size given: with the number of blocks, the width, the lengths,
    /// the vocabulary and the batch, each at up to four values
    #[arg(long)]
    scaling: bool,
    /// Rounds in which the sides take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Timed repeats of each side in a round
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// The type of weights and activations on the backends; a peer has its own
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The commit of this program, for the record
    #[arg(long)]
    commit: Option<String>,
    /// Do not tell what is being measured
    #[arg(long)]
    quiet: bool,
    /// Measure nothing: write the models and their batches into this folder, for `altup measure`, with what the works
    /// take by their arithmetic
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "peer", "scaling", "backends"])]
    prepare: Option<PathBuf>,
    /// A folder for the results: comparison.json, comparison.md and the charts, or those of kernels, exchange or scaling;
    /// it must not hold such results yet
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// What is timed: a work of each side, what replicas do together, or the kernels of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    OfSides(Work),
    Exchange,
    Kernels,
}

impl ValueEnum for Asked {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::OfSides(Work::Forward),
            Self::OfSides(Work::Train),
            Self::OfSides(Work::Prefill),
            Self::OfSides(Work::Decode),
            Self::OfSides(Work::Breakdown),
            Self::Exchange,
            Self::Kernels,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::OfSides(work) => work.to_possible_value(),
            Self::Exchange => Some(
                PossibleValue::new("exchange")
                    .help("The sum of a model's gradients over all replicas, under mpirun, beside a training step"),
            ),
            Self::Kernels => Some(PossibleValue::new("kernels").help(
                "The rates at which a device copies and multiplies matrices, and the kernels that pass over memory",
            )),
        }
    }
}

/// Measure one model directory on one backend and print a line of JSON: one side of `altup bench`
#[derive(Args)]
pub(super) struct MeasureArgs {
    /// A model directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A JSON file {"input_ids": [[…]], "labels": [[…]], "new_tokens": N}; all rows of one length
    #[arg(long, value_name = "FILE")]
    batch: PathBuf,
    /// What is timed
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["forward", "train", "prefill", "decode"])]
    works: Vec<Work>,
    /// Timed repeats after one that warms up; with 0 only the loss is computed
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// The dropout rate of steps of training
    #[arg(long, default_value_t = 0.0, value_name = "RATE", value_parser = rate)]
    dropout: f64,
    /// Steps of training compute the activations of each layer again
    #[arg(long)]
    recompute_layers: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text} is not a number"))?;
    match (0.0..1.0).contains(&rate) {
        true => Ok(rate),
        false => Err(format!("a dropout rate is at least 0 and below 1, not {rate}")),
    }
}

fn peer(text: &str) -> Result<Side, String> {
    let (name, command) = text.split_once('=').ok_or("a peer is given as NAME=COMMAND")?;
    let command: Vec<String> = command.split_whitespace().map(String::from).collect();
    if command.is_empty() {
        return Err(format!("the peer {name} has no command"));
    }
    Ok(Side { name: name.to_owned(), command, may_lack_models: true })
}

pub(super) fn measure(args: MeasureArgs) -> anyhow::Result<()> {
    let device = args.backend.open()?;
    let precision = args.precision.precision;
    precision.check(&device)?;
    let (works, repeats) = (&args.works, args.repeats);
    let (model, batch) = (&args.model, &args.batch);
    let steps = StepOptions { dropout: args.dropout, recompute_layers: args.recompute_layers };
    let measured = measure::measure(model, batch, &device, precision, works, repeats, steps)?;
    Ok(output::json(&measured)?)
}

pub(super) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if args.works.contains(&Asked::Exchange) {
        return together(|replicas| exchange(args, replicas));
    }
    refuse_several("a comparison");
    process::set_up();
    let done = match &args.prepare {
        _ if args.works.contains(&Asked::Kernels) => kernels(args),
        Some(folder) => args.plan(args.works_of_sides()).prepare(folder),
        None => bench(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Measures the kernels of one backend at the widths of one size.
fn kernels(args: BenchArgs) -> anyhow::Result<()> {
    const NAME: &str = "kernels";
    ensure!(
        args.works == [Asked::Kernels]
            && args.peer.is_empty()
            && !args.scaling
            && args.prepare.is_none(),
        "kernels are measured alone: without other --works, --peer, --scaling and --prepare"
    );
    check_free(args.output.as_deref(), NAME)?;
    let [backend] = &args.backends[..] else {
        bail!("kernels are measured on one of the --backends at a time");
    };
    let [size] = &args.sizes[..] else {
        bail!("kernels are measured at the widths of one of the --sizes at a time");
    };
    let device = backends::open(backend)?;
    args.precision.check(&device)?;
    let plan = args.plan(Vec::new());
    let config = plan.config(size, models::MODELS[0])?;
    let batch = [plan.batch_size, plan.input_length, plan.target_length];
    let (copy, [products, passes]) =
        kernels::measure(&config, batch, &device, plan.precision, plan.rounds * plan.repeats);
    let measured = Kernels {
        machine: Machine::here(),
        commit: args.commit,
        backend: backend.to_string(),
        device: hardware_name(&device).unwrap_or_else(|| "cpu".into()),
        precision: plan.precision,
        size: size.clone(),
        batch,
        copy,
        products,
        passes,
    };
    let json = serde_json::to_string_pretty(&measured)?;
    tell(NAME, measured.markdown(), json, Vec::new(), args.output)
}

/// Measures the exchange between the replicas, all of which are here.
fn exchange(args: BenchArgs, replicas: &Replicas) -> anyhow::Result<ExitCode> {
    let plan = args.plan(Vec::new());
    let backends: Vec<String> = args.backends.iter().map(DeviceName::to_string).collect();
    replicas.agree(&agreement_on("altup bench").and("bench", &plan).and("--backends", backends))?;
    ensure!(
        args.works == [Asked::Exchange]
            && args.peer.is_empty()
            && !args.scaling
            && args.prepare.is_none(),
        "the exchange is measured alone: without other --works, --peer, --scaling and --prepare"
    );
    ensure!(
        !replicas.is_lone(),
        "an exchange needs several replicas, as in: mpirun -n 2 altup bench --works exchange"
    );
    const NAME: &str = "exchange";
    check_free(args.output.as_deref().filter(|_| replicas.is_first()), NAME)?;
    let backend = match &args.backends[..] {
        [] => DeviceName::default(),
        [backend] => backend.clone(),
        _ => bail!("the exchange is measured on one of the --backends at a time"),
    };
    let place = replicas.place();
    let device = backends::open(&backend.of_replica(place.local_rank))?;
    args.precision.check(&device)?;
    let mut measured = Vec::new();
    for size in &plan.sizes {
        for model in &plan.models {
            let config = plan.config(size, model)?;
            if !args.quiet && replicas.is_first() {
                output::note(&format!("{size} {model}: steps of {} replicas", place.size));
            }
            let lengths = [plan.input_length, plan.target_length];
            let batch =
                BenchBatch::random(config.vocab_size, plan.batch_size, lengths, 1, plan.seed);
            let (name, steps) = ((size.as_str(), model.as_str()), plan.rounds * plan.repeats);
            measured.push(ModelExchange::measure(
                replicas,
                name,
                &config,
                &batch,
                &device,
                plan.precision,
                steps,
            ));
        }
    }
    if replicas.is_first() {
        let exchanges = Exchanges {
            machine: Machine::here(),
            commit: args.commit,
            replicas: place.size,
            on_machine: place.local_size,
            threads: process::num_threads(),
            backend: backend.to_string(),
            batch: [plan.batch_size, plan.input_length, plan.target_length],
            models: measured,
        };
        let json = serde_json::to_string_pretty(&exchanges)?;
        tell(NAME, exchanges.markdown(), json, Vec::new(), args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl BenchArgs {
    fn works_of_sides(&self) -> Vec<Work> {
        let work = |asked: &Asked| match asked {
            Asked::OfSides(work) => Some(*work),
            Asked::Exchange | Asked::Kernels => None,
        };
        self.works.iter().filter_map(work).collect()
    }

    fn plan(&self, works: Vec<Work>) -> Plan {
        Plan {
            sizes: self.sizes.clone(),
            models: self.models.clone(),
            works,
            batch_size: self.batch_size,
            input_length: self.input_length,
            target_length: self.target_length,
            new_tokens: self.new_tokens,
            vocab_size: self.vocab_size,
            rounds: self.rounds,
            repeats: self.repeats,
            precision: self.precision,
            seed: self.seed,
        }
    }
}

/// Checks that a folder holds no results of this name yet.
fn check_free(folder: Option<&Path>, name: &str) -> anyhow::Result<()> {
    for extension in ["json", "md"] {
        let Some(folder) = folder else { continue };
        let results = folder.join(format!("{name}.{extension}"));
        ensure!(!results.exists(), "{} is there already; choose another folder", results.display());
    }
    Ok(())
}

fn bench(args: BenchArgs) -> anyhow::Result<()> {
    let name = if args.scaling { "scaling" } else { "comparison" };
    check_free(args.output.as_deref(), name)?;
    let plan = args.plan(args.works_of_sides());
    let mut backends = args.backends;
    if backends.is_empty() {
        backends = default_backends();
    }
    for backend in &backends {
        backends::open(backend)?;
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let program = program.to_str().context("this program's path is not UTF-8")?;
    let precision = args.precision.name();
    let side = |backend: &DeviceName| Side {
        name: backend.to_string(),
        command: [program, "measure", "--backend", &backend.to_string(), "--precision", precision]
            .map(String::from)
            .into(),
        may_lack_models: false,
    };
    let sides: Vec<Side> = backends.iter().map(side).chain(args.peer).collect();
    let mut note = |text: &str| match args.quiet {
        true => (),
        false => output::note(text),
    };
    let (markdown, json, files) = if args.scaling {
        let axes = scaling::run(&plan, &sides, args.commit, &mut note)?;
        (scaling::markdown(&plan, &axes), serde_json::to_string_pretty(&axes)?, Vec::new())
    } else {
        let comparison = plan.run(&sides, args.commit, &mut note)?;
        let json = serde_json::to_string_pretty(&comparison)?;
        (comparison.markdown(), json, comparison.charts())
    };
    tell(name, markdown, json, files, args.output)
}

/// Prints results, and writes them into a folder if there is one.
fn tell(
    name: &str,
    markdown: String,
    json: String,
    mut files: Vec<(String, String)>,
    folder: Option<PathBuf>,
) -> anyhow::Result<()> {
    output::line(&markdown)?;
    match folder {
        Some(folder) => {
            files.push((format!("{name}.md"), markdown));
            // Last: its presence says that the folder is complete.
            files.push((format!("{name}.json"), json + "\n"));
            write(&folder, files)
        }
        None => Ok(()),
    }
}

fn write(folder: &Path, files: Vec<(String, String)>) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        files.iter().try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
    };
    written().with_context(|| format!("cannot write {}", folder.display()))
}

/// Those of the CPU that are compiled in. A GPU is named: it may be one in software.
fn default_backends() -> Vec<DeviceName> {
    let names = [Backend::Flex, Backend::NdArray, Backend::Tch];
    names.into_iter().filter(|backend| backend.is_compiled()).map(DeviceName::from).collect()
}
