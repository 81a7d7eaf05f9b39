use altup_train::bench::comparison::Side;
use altup_train::progress::{ProgressMode, format_count};
use altup_train::replicas::Launch;
use altup_train::study::execute::{Executor, Outcome};
use altup_train::study::folder::RunStatus;
use altup_train::study::plan::Overrides;
use altup_train::study::{Results, StudyFolder, StudyPlan, latency, report};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stop::{self, Stop};
use super::{BackendArgs, CacheArgs, output};

/// Train variants of a model on the same batches from several seeds, and report what sets them apart
///
/// The same command goes on after a stop or a kill, without repeating what is finished.
#[derive(Args)]
pub(super) struct StudyArgs {
    /// The TOML file of the study; configs/studies has some
    #[arg(value_name = "STUDY.toml")]
    study: PathBuf,
    /// The folder of the study: its runs, its results and its report
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// How many runs train at a time; they share the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Take the study's smoke budget: seconds that show that everything works
    #[arg(long)]
    smoke: bool,
    /// Print what would be run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Do only a part of the work
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// Remove runs in the folder that are no longer the study's
    #[arg(long)]
    prune: bool,
    /// Files, folders and globs of text to train on, in place of the study's
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    train: Vec<String>,
    /// Files, folders and globs of text to validate on, in place of the study's
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    valid: Vec<String>,
    /// Any key of every run's configuration, as in optimizer.learning_rate=0.5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// Print what came of the study as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// How long it waits for the runs of a study that was killed, which are saving themselves.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// A part of a study's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Train what is not finished
    Runs,
    /// Time the models of the finished runs, with nothing else at work on this machine
    Measure,
    /// Write the report of what is there
    Report,
}

/// What came of a study.
#[derive(Serialize)]
struct Summary {
    study: String,
    planned: usize,
    finished: usize,
    failed: Vec<String>,
    results: PathBuf,
    report: PathBuf,
}

pub(super) fn run(args: StudyArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        smoke: args.smoke,
        train: args.train.clone(),
        valid: args.valid.clone(),
        assignments: args.assignments.clone(),
    };
    let plan = StudyPlan::read(&args.study, &overrides)?;
    if args.dry_run {
        dry_run(&plan, args.output.map(|path| StudyFolder::new(&path)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(launch) = Launch::here() {
        anyhow::bail!(
            "{} processes of this program were started together ({}), and a study starts its own: start it alone",
            launch.size,
            launch.variable
        );
    }
    let does = |part: Part| args.only.is_none_or(|only| only == part);
    args.backend.open()?;
    let folder = StudyFolder::new(&args.output.context("--output is missing")?);
    let lock = folder.lock(LOCK_PATIENCE)?;
    folder.reconcile(&plan, args.prune)?;
    let text = std::fs::read(&args.study)
        .with_context(|| format!("cannot use {}", args.study.display()))?;
    folder.write(&folder.study_file(), &text)?;

    let program = std::env::current_exe().context("cannot find this program")?;
    let backend = args.backend.backend.to_string();
    let mode = if args.quiet { ProgressMode::Quiet } else { ProgressMode::Auto };
    let listener = Stop::listen(String::new())?;
    let stop = listener.flag();
    let mut outcome = Outcome::default();
    if does(Part::Runs) {
        let cache = args.cache.folder();
        let cache = cache.to_str().context("the path of the cache folder is not UTF-8")?;
        let executor = Executor {
            plan: &plan,
            folder: &folder,
            lock: &lock,
            program: program.clone(),
            arguments: ["--backend", &backend, "--cache-dir", cache].map(String::from).into(),
            jobs: args.jobs.into(),
            mode,
        };
        outcome = executor.run(stop)?;
    }
    if does(Part::Measure) && !outcome.stopped {
        let program = program.to_str().context("this program's path is not UTF-8")?;
        let command = [program, "measure", "--backend", &backend].map(String::from).into();
        let side = Side { name: backend, command, may_lack_models: false };
        let mut note = |text: &str| match args.quiet {
            true => (),
            false => output::note(text),
        };
        let finished = Results::collect(&plan, &folder)?.runs;
        latency::measure(&plan, &finished, &folder, &side, &mut note, stop)?;
        outcome.stopped |= stop.load(Ordering::Relaxed);
    }
    let results = Results::collect(&plan, &folder)?;
    report::write(&plan, &folder, &results)?;

    let page = folder.path().join("report.html");
    if args.json {
        output::json(&Summary {
            study: results.study.clone(),
            planned: results.planned,
            finished: results.runs.len(),
            failed: outcome.failed.iter().map(|(name, _)| name.clone()).collect(),
            results: folder.results(),
            report: page,
        })?;
    } else {
        let (finished, planned) = (results.runs.len(), results.planned);
        output::line(&format!(
            "{finished} of {planned} runs finished\nreport  {}",
            page.display()
        ))?;
    }
    if outcome.stopped {
        if !args.quiet {
            output::note("stopped before the study was done: the same command goes on");
        }
        return Ok(stop::exit_code());
    }
    if !outcome.failed.is_empty() {
        let failed: Vec<String> =
            outcome.failed.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        bail!("{} of {} runs failed: {}", failed.len(), plan.runs.len(), failed.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

/// The runs in the order in which they would start, and where each of them is.
fn dry_run(plan: &StudyPlan, folder: Option<StudyFolder>) -> anyhow::Result<()> {
    output::line(&format!("{}: {} runs", plan.title, plan.runs.len()))?;
    if !plan.expected.is_empty() {
        output::line(&format!("time: {}", plan.expected))?;
    }
    for run in &plan.runs {
        let status = folder.as_ref().map_or(RunStatus::New, |folder| folder.status(&run.name));
        let status = match status {
            RunStatus::New => "to run",
            RunStatus::Started => "to go on",
            RunStatus::Finished => "finished",
        };
        let steps = run.config.training.steps;
        let operations = format_count((run.cost() / 1e9).round() as u64);
        let name = &run.name;
        output::line(&format!("{status:9}{name}  {steps} steps  {operations} GFLOP"))?;
    }
    Ok(())
}
