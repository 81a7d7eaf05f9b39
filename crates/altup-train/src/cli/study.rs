use altup_train::bench::comparison::Side;
use altup_train::config::RunConfig;
use altup_train::progress::{Progress, ProgressMode, format_count};
use altup_train::run_data::{DataCache, find_texts};
use altup_train::run_folder::RunFolder;
use altup_train::study::execute::{Executor, Outcome};
use altup_train::study::fine_tuning::PlannedFineTuning;
use altup_train::study::folder::{Changes, RunStatus};
use altup_train::study::job::Job;
use altup_train::study::latency::NotMeasured;
use altup_train::study::plan::{Overrides, PlannedRun};
use altup_train::study::{Results, StudyFolder, StudyPlan, comparable, latency, report};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::replicas::refuse_several;
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
    /// The folder of the original files of tasks, in place of the study's
    #[arg(long, value_name = "FOLDER")]
    task_data: Option<PathBuf>,
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
    /// Fine-tune the trained models on the study's tasks
    FineTuning,
    /// Time the models of the finished runs, with nothing else at work on this machine
    Measure,
    /// Write the report of what is there
    Report,
}

/// Refuses a study with a text that is not there, which otherwise each of its runs would fail for, when the `discarded` ones
/// are gone.
fn check_texts(plan: &StudyPlan, folder: &StudyFolder, discarded: &Changes) -> anyhow::Result<()> {
    let is_left = |run: &&PlannedRun| {
        discarded.has(&run.name) || folder.status(&run.name) != RunStatus::Finished
    };
    let mut found: Vec<&RunConfig> = Vec::new();
    for PlannedRun { name, config, .. } in plan.runs.iter().filter(is_left) {
        if !found.iter().any(|other| other.data == config.data) {
            find_texts(config).with_context(|| format!("cannot run {name}"))?;
            found.push(config);
        }
    }
    Ok(())
}

/// What came of a study.
#[derive(Serialize)]
struct Summary {
    study: String,
    planned: usize,
    finished: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fine_tunings: Option<FineTunings>,
    failed: Vec<String>,
    results: PathBuf,
    report: PathBuf,
}

/// How many fine-tunings there are.
#[derive(Serialize)]
struct FineTunings {
    planned: usize,
    finished: usize,
}

pub(super) fn run(args: StudyArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        smoke: args.smoke,
        train: args.train.clone(),
        valid: args.valid.clone(),
        task_data: args.task_data.clone(),
        assignments: args.assignments.clone(),
    };
    let plan = StudyPlan::read(&args.study, &overrides)?;
    if args.dry_run {
        dry_run(&plan, args.output.map(|path| StudyFolder::new(&path)))?;
        return Ok(ExitCode::SUCCESS);
    }
    refuse_several("a study");
    if !plan.expected.is_empty() && !args.quiet {
        output::note(&format!("time: {}", plan.expected));
    }
    let does = |part: Part| args.only.is_none_or(|only| only == part);
    args.backend.open()?;
    let folder = StudyFolder::new(&args.output.context("--output is missing")?);
    let lock = folder.lock(LOCK_PATIENCE)?;
    let changes = folder.changed(&plan)?;
    if !args.prune {
        folder.refuse(&changes)?;
    }
    if does(Part::Runs) {
        check_texts(&plan, &folder, &changes)?;
    }
    let backend = args.backend.backend.to_string();
    let mode = if args.quiet { ProgressMode::Quiet } else { ProgressMode::Auto };
    if does(Part::Runs) {
        let (cache, progress) = (DataCache::new(&args.cache.folder()), Progress::new(mode, 0, 0));
        comparable::check_planned(&plan, &folder, &changes, &backend, &cache, &progress)?;
        progress.finish();
    }
    if does(Part::FineTuning) {
        comparable::check_planned_fine_tunings(&plan, &folder, &changes, &backend)?;
    }
    // Not before it is sure that the study goes on: what is removed is gone.
    folder.discard(changes)?;
    let text = std::fs::read(&args.study)
        .with_context(|| format!("cannot use {}", args.study.display()))?;
    folder.write(&folder.study_file(), &text)?;

    let program = std::env::current_exe().context("cannot find this program")?;
    let listener = Stop::listen(String::new())?;
    let stop = listener.flag();
    let mut outcome = Outcome::default();
    let mut not_timed = NotMeasured::new();
    let mut work = |noun, jobs, arguments: Vec<&str>| -> anyhow::Result<()> {
        let executor = Executor {
            jobs,
            noun,
            folder: &folder,
            lock: &lock,
            program: program.clone(),
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            at_a_time: args.jobs.into(),
            mode,
        };
        let Outcome { failed, stopped } = executor.run(stop)?;
        outcome.failed.extend(failed);
        outcome.stopped |= stopped;
        Ok(())
    };
    if does(Part::Runs) {
        let cache = args.cache.folder();
        let cache = cache.to_str().context("the path of the cache folder is not UTF-8")?;
        let jobs = plan.runs.iter().map(|run| run.job(&folder)).collect();
        work("runs", jobs, vec!["--backend", &backend, "--cache-dir", cache])?;
    }
    if does(Part::FineTuning) {
        let is_trained =
            |planned: &&PlannedFineTuning| folder.status(&planned.run) == RunStatus::Finished;
        let jobs = plan.fine_tunings.iter().filter(is_trained);
        let jobs: Vec<Job> = jobs.map(|planned| planned.job(&folder)).collect::<Result<_, _>>()?;
        if !jobs.is_empty() {
            work("fine-tunings", jobs, vec!["--backend", &backend])?;
        }
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
        not_timed = latency::measure(&plan, &finished, &folder, &side, &mut note, stop)?;
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
            fine_tunings: fine_tunings(&results),
            failed: outcome.failed.iter().map(|(name, _)| name.clone()).collect(),
            results: folder.results(),
            report: page,
        })?;
    } else {
        let (finished, planned) = (results.runs.len(), results.planned);
        output::line(&format!("{finished} of {planned} runs finished"))?;
        if let Some(FineTunings { planned, finished }) = fine_tunings(&results) {
            output::line(&format!("{finished} of {planned} fine-tunings finished"))?;
        }
        output::line(&format!("report  {}", page.display()))?;
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
        let (what, planned) = match plan.fine_tunings.len() {
            0 => ("runs", plan.runs.len()),
            more => ("runs and fine-tunings", plan.runs.len() + more),
        };
        bail!("{} of {planned} {what} failed: {}", failed.len(), failed.join("; "));
    }
    if !not_timed.is_empty() {
        let reasons: Vec<String> =
            not_timed.iter().map(|(model, reason)| format!("{model}: {reason}")).collect();
        bail!("{} models could not be timed: {}", reasons.len(), reasons.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

fn fine_tunings(results: &Results) -> Option<FineTunings> {
    let planned = results.planned_fine_tunings;
    let finished = planned - results.missing_fine_tunings.len();
    (planned > 0).then_some(FineTunings { planned, finished })
}

/// The runs and fine-tunings in the order in which they would start, and where each of them is.
fn dry_run(plan: &StudyPlan, folder: Option<StudyFolder>) -> anyhow::Result<()> {
    output::line(&format!("{}: {} runs", plan.title, plan.runs.len()))?;
    if !plan.expected.is_empty() {
        output::line(&format!("time: {}", plan.expected))?;
    }
    let status = |run: &dyn Fn(&StudyFolder) -> RunFolder| match folder
        .as_ref()
        .map(|folder| RunStatus::of(&run(folder)))
    {
        None | Some(RunStatus::New) => "to run",
        Some(RunStatus::Started) => "to go on",
        Some(RunStatus::Finished) => "finished",
    };
    for run in &plan.runs {
        let status = status(&|folder| folder.run_folder(&run.name));
        let steps = run.config.training.steps;
        let operations = format_count((run.cost() / 1e9).round() as u64);
        let name = &run.name;
        output::line(&format!("{status:9}{name}  {steps} steps  {operations} GFLOP"))?;
    }
    for planned in &plan.fine_tunings {
        let status = status(&|folder| folder.fine_tuning_folder(planned));
        let (name, steps) = (planned.name(), planned.config.training.steps);
        output::line(&format!("{status:9}{name}  {steps} steps"))?;
    }
    Ok(())
}
