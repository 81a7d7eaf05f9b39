//! Runs in processes of their own: this program's `altup train`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::folder::{RunStatus, StudyFolder, StudyFolderError};
use super::overview::{MetricsTail, Overview, Pace, whole_line};
use super::plan::{PlannedRun, StudyPlan};
use crate::folder_lock::FolderLock;
use crate::progress::{ProgressMode, format_duration};

/// How often it looks at its processes.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it shows how far they are.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Runs a study's runs.
pub struct Executor<'a> {
    /// The runs.
    pub plan: &'a StudyPlan,
    /// Where they go.
    pub folder: &'a StudyFolder,
    /// The right to work there, which the processes share.
    pub lock: &'a FolderLock,
    /// The program whose `train` runs them.
    pub program: PathBuf,
    /// What it is given besides: the backend, the cache.
    pub arguments: Vec<String>,
    /// How many run at a time; they share the threads.
    pub jobs: usize,
    /// Whether anyone watches.
    pub mode: ProgressMode,
}

/// What came of a study's runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Runs that failed, and why. The others went on.
    pub failed: Vec<(String, String)>,
    /// Whether it was told to stop before all were done.
    pub stopped: bool,
}

/// Why a study can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The folder can't be used.
    #[error(transparent)]
    Folder(#[from] StudyFolderError),
    /// A process can't be started or waited for.
    #[error("cannot run {}", program.display())]
    Process {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A run at work.
struct AtWork<'a> {
    run: &'a PlannedRun,
    process: Child,
    started: Instant,
    from_step: u64,
    tail: MetricsTail,
    bar: ProgressBar,
}

impl AtWork<'_> {
    /// How far it is, from 0 to 1.
    fn share(&self) -> f64 {
        let step = self.tail.train.as_ref().map_or(self.from_step, |row| row.step);
        step as f64 / self.run.config.training.steps as f64
    }

    /// The share that this process has done.
    fn share_done(&self) -> f64 {
        (self.share() - self.from_step as f64 / self.run.config.training.steps as f64).max(0.0)
    }
}

impl Executor<'_> {
    /// Runs what is not finished, until it is or `stop` is set. A run that fails is noted, and the others go on.
    ///
    /// # Errors
    ///
    /// If the folder can't be written or this program can't be started.
    pub fn run(&self, stop: &AtomicBool) -> Result<Outcome, ExecuteError> {
        let runs = &self.plan.runs;
        let is_finished = |run: &&PlannedRun| self.folder.status(&run.name) == RunStatus::Finished;
        let mut queue: VecDeque<&PlannedRun> =
            runs.iter().filter(|run| !is_finished(run)).collect();
        let mut done = runs.len() - queue.len();
        let mut pace = Pace::default();
        for run in runs.iter().filter(is_finished) {
            if let Some(seconds) = super::results::train_seconds(self.folder, &run.name) {
                pace.add(run, 1.0, seconds);
            }
        }
        let overview = Overview::new(self.mode, runs.len(), done);
        overview.plain(&whole_line(done, 0, runs.len(), None));
        let mut outcome = Outcome::default();
        let mut at_work: Vec<AtWork<'_>> = Vec::new();
        let mut told = false;
        let mut shown = Instant::now();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && !told {
                told = true;
                outcome.stopped = !queue.is_empty() || !at_work.is_empty();
                overview.note("stopping: the runs at work save a checkpoint");
                at_work.iter().for_each(|run| tell_to_stop(&run.process));
            }
            while !stopping && at_work.len() < self.jobs {
                let Some(run) = queue.pop_front() else { break };
                at_work.push(self.start(run, &overview)?);
            }
            if at_work.is_empty() {
                break;
            }
            let mut number = 0;
            while number < at_work.len() {
                let ended = at_work[number].process.try_wait();
                let Some(status) = ended.map_err(|source| self.process_error(source))? else {
                    number += 1;
                    continue;
                };
                let mut run = at_work.swap_remove(number);
                run.tail.read();
                let seconds = run.started.elapsed().as_secs_f64();
                let name = &run.run.name;
                if self.folder.status(name) == RunStatus::Finished {
                    done += 1;
                    pace.add(
                        run.run,
                        1.0 - run.from_step as f64 / run.run.config.training.steps as f64,
                        seconds,
                    );
                    let loss = run.tail.valid.as_ref().map_or(f64::NAN, |row| row.loss);
                    let left = self.remaining(&pace, &queue, &at_work);
                    let whole = whole_line(done, outcome.failed.len(), runs.len(), left);
                    let taken = format_duration(seconds);
                    overview.end(
                        &run.bar,
                        &format!("finished {name} in {taken}, validation loss {loss:.4}"),
                    );
                    overview.plain(&whole);
                } else if told {
                    overview.end(&run.bar, &format!("stopped {name}"));
                } else {
                    let reason = self.reason(name, status);
                    overview.end(&run.bar, &format!("failed {name}: {reason}"));
                    outcome.failed.push((name.clone(), reason));
                }
            }
            if shown.elapsed() >= SHOW_EVERY {
                for run in &mut at_work {
                    run.tail.read();
                    overview.show(&run.bar, run.run, &run.tail);
                }
                let remaining = self.remaining(&pace, &queue, &at_work);
                overview.show_whole(done, outcome.failed.len(), runs.len(), remaining);
                shown = Instant::now();
            }
            std::thread::sleep(LOOK_EVERY);
        }
        overview.finish();
        Ok(outcome)
    }

    /// Seconds until all is done, as far as what has run tells.
    fn remaining(
        &self,
        pace: &Pace,
        queue: &VecDeque<&PlannedRun>,
        at_work: &[AtWork<'_>],
    ) -> Option<f64> {
        // What is at work counts too, from when it has done a twentieth: its start is slow.
        let mut with_started = Pace::default();
        let pace = if at_work.iter().any(|run| pace.expect(run.run).is_none()) {
            for run in at_work.iter().filter(|run| run.share_done() > 0.05) {
                with_started.add(
                    run.run,
                    run.share_done().min(0.999),
                    run.started.elapsed().as_secs_f64(),
                );
            }
            &with_started
        } else {
            pace
        };
        let mut seconds = 0.0;
        for run in at_work {
            seconds += (1.0 - run.share()) * pace.expect(run.run)?;
        }
        for run in queue {
            seconds += pace.expect(run)?;
        }
        let at_a_time = self.jobs.min(at_work.len() + queue.len()).max(1);
        Some(seconds / at_a_time as f64)
    }

    fn start<'r>(
        &self,
        run: &'r PlannedRun,
        overview: &Overview,
    ) -> Result<AtWork<'r>, ExecuteError> {
        let files = self.folder.run_folder(&run.name);
        let from_step = newest_checkpoint(&files.checkpoints());
        let mut command = Command::new(&self.program);
        command.arg("train").arg("--config").arg(self.folder.write_config(run)?);
        command.arg("--output").arg(files.path()).arg("--auto-resume").args(&self.arguments);
        if self.jobs > 1 {
            command.env("RAYON_NUM_THREADS", threads_of_each(self.jobs).to_string());
        }
        let log = self.log(&run.name)?;
        let error = |source| self.process_error(source);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(error)?).stderr(log);
        self.bind_to_this_process(&mut command);
        let process = command.spawn().map_err(error)?;
        Ok(AtWork {
            run,
            process,
            started: Instant::now(),
            from_step,
            tail: MetricsTail::new(files.metrics()),
            bar: overview.start(run, from_step),
        })
    }

    /// Where a run's process writes to; what those before it wrote stays.
    fn log(&self, name: &str) -> Result<File, StudyFolderError> {
        let path = self.folder.log(name);
        let open = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            File::options().create(true).append(true).open(&path)
        };
        open().map_err(|source| StudyFolderError::File { path: path.clone(), source })
    }

    /// Why a run has failed: the last line that its process wrote.
    fn reason(&self, name: &str, status: ExitStatus) -> String {
        let log = fs::read_to_string(self.folder.log(name)).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        match last {
            Some(line) => format!("{} ({status})", line.trim_start_matches("error: ")),
            None => status.to_string(),
        }
    }

    /// Lets a process ignore the terminal's Ctrl-C, which this one passes on; share the lock; and stop, saved, when this
    /// process dies.
    fn bind_to_this_process(&self, command: &mut Command) {
        #[cfg(unix)]
        {
            use std::os::fd::AsRawFd;
            use std::os::unix::process::CommandExt;
            command.process_group(0);
            let lock = self.lock.file().as_raw_fd();
            let parent = std::process::id();
            // SAFETY: between fork and exec only functions run that are safe after a signal: fcntl, prctl, getppid.
            unsafe {
                command.pre_exec(move || {
                    if libc::fcntl(lock, libc::F_SETFD, 0) == -1 {
                        return Err(io::Error::last_os_error());
                    }
                    #[cfg(target_os = "linux")]
                    if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == -1
                        || libc::getppid() as u32 != parent
                    {
                        return Err(io::Error::other("the study has ended"));
                    }
                    let _ = parent;
                    Ok(())
                });
            }
        }
    }

    fn process_error(&self, source: io::Error) -> ExecuteError {
        ExecuteError::Process { program: self.program.clone(), source }
    }
}

/// Threads for each of `jobs` processes.
fn threads_of_each(jobs: usize) -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (asked.filter(|&count: &usize| count > 0).unwrap_or(cores) / jobs).max(1)
}

/// The step of the newest checkpoint.
fn newest_checkpoint(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    entries
        .filter_map(|entry| step(entry.file_name().to_string_lossy().into_owned()))
        .max()
        .unwrap_or(0)
}

/// Asks a run to save a checkpoint and end.
fn tell_to_stop(process: &Child) {
    #[cfg(unix)]
    {
        // SAFETY: the process is a child that has not been waited for, so the number is its own.
        unsafe { libc::kill(process.id() as libc::pid_t, libc::SIGTERM) };
    }
    #[cfg(not(unix))]
    let _ = process; // It gets the console's Ctrl-C itself.
}
