//! Jobs in processes of their own: this program's `altup train` and `altup finetune`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::folder::{RunStatus, StudyFolder, StudyFolderError};
use super::job::Job;
use super::overview::{JobCount, MetricsTail, Overview, Pace, in_words};
use crate::folder_lock::FolderLock;
use crate::progress::{ProgressMode, format_duration};

/// How often it looks at its processes.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it shows how far they are.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Does a study's jobs.
pub struct Executor<'a> {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// What each is, for those who watch: runs, fine-tunings.
    pub noun: &'static str,
    /// The folder of the study.
    pub folder: &'a StudyFolder,
    /// The right to work there, which the processes share.
    pub lock: &'a FolderLock,
    /// The program that does them.
    pub program: PathBuf,
    /// What it is given besides: the backend, the cache.
    pub arguments: Vec<String>,
    /// How many are done at a time; they share the threads.
    pub at_a_time: usize,
    /// Whether anyone watches.
    pub mode: ProgressMode,
}

/// What came of a study's jobs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Those that failed, and why. The others went on.
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

/// Begins the line of a log behind which another process writes.
const STARTED: &str = "-- from step ";

/// A job at work.
struct AtWork<'a> {
    job: &'a Job,
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
        step as f64 / self.job.steps as f64
    }

    /// The share that this process has done.
    fn share_done(&self) -> f64 {
        (self.share() - self.from_step as f64 / self.job.steps as f64).max(0.0)
    }
}

impl Executor<'_> {
    /// Does what is not finished, until it is or `stop` is set. A job that fails is noted, and the others go on.
    ///
    /// # Errors
    ///
    /// If the folder can't be written or this program can't be started.
    pub fn run(&self, stop: &AtomicBool) -> Result<Outcome, ExecuteError> {
        let is_finished = |job: &&Job| RunStatus::of(&job.folder) == RunStatus::Finished;
        let (finished, queue): (Vec<&Job>, Vec<&Job>) = self.jobs.iter().partition(is_finished);
        let mut queue = VecDeque::from(queue);
        let mut done = finished.len();
        let mut pace = Pace::default();
        for job in finished {
            if let Some(seconds) = super::results::train_seconds(&job.folder) {
                pace.add(job, 1.0, seconds);
            }
        }
        let count = JobCount { noun: self.noun, total: self.jobs.len() };
        let overview = Overview::new(self.mode, count, done);
        overview.plain_whole(done, 0, None);
        let mut outcome = Outcome::default();
        let mut at_work: Vec<AtWork<'_>> = Vec::new();
        let mut told = false;
        let mut shown = Instant::now();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && !told {
                told = true;
                outcome.stopped = !queue.is_empty() || !at_work.is_empty();
                if !at_work.is_empty() {
                    let text = format!("stopping: the {} at work save a checkpoint", self.noun);
                    overview.note(&text);
                }
                at_work.iter().for_each(|job| tell_to_stop(&job.process));
            }
            while !stopping && at_work.len() < self.at_a_time {
                let Some(job) = queue.pop_front() else { break };
                at_work.push(self.start(job, &overview)?);
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
                let mut ended = at_work.swap_remove(number);
                ended.tail.read();
                let seconds = ended.started.elapsed().as_secs_f64();
                let name = &ended.job.name;
                if RunStatus::of(&ended.job.folder) == RunStatus::Finished {
                    done += 1;
                    let share = 1.0 - ended.from_step as f64 / ended.job.steps as f64;
                    pace.add(ended.job, share, seconds);
                    let came_to = ended.tail.valid.as_ref().map(in_words).unwrap_or_default();
                    let left = self.remaining(&pace, &queue, &at_work);
                    let taken = format_duration(seconds);
                    overview.end(&ended.bar, &format!("finished {name} in {taken}, {came_to}"));
                    overview.plain_whole(done, outcome.failed.len(), left);
                } else if told {
                    overview.end(&ended.bar, &format!("stopped {name}"));
                } else {
                    let reason = self.reason(name, status);
                    overview.end(&ended.bar, &format!("failed {name}: {reason}"));
                    outcome.failed.push((name.clone(), reason));
                }
            }
            if shown.elapsed() >= SHOW_EVERY {
                for working in &mut at_work {
                    working.tail.read();
                    overview.show(&working.bar, working.job, &working.tail);
                }
                let remaining = self.remaining(&pace, &queue, &at_work);
                overview.show_whole(done, outcome.failed.len(), remaining);
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
        queue: &VecDeque<&Job>,
        at_work: &[AtWork<'_>],
    ) -> Option<f64> {
        // What is at work counts too, from when it has done a twentieth: its start is slow.
        let mut with_started = Pace::default();
        let pace = if at_work.iter().any(|working| pace.expect(working.job).is_none()) {
            for working in at_work.iter().filter(|working| working.share_done() > 0.05) {
                let seconds = working.started.elapsed().as_secs_f64();
                with_started.add(working.job, working.share_done().min(0.999), seconds);
            }
            &with_started
        } else {
            pace
        };
        let mut seconds = 0.0;
        for working in at_work {
            seconds += (1.0 - working.share()) * pace.expect(working.job)?;
        }
        for job in queue {
            seconds += pace.expect(job)?;
        }
        let at_a_time = self.at_a_time.min(at_work.len() + queue.len()).max(1);
        Some(seconds / at_a_time as f64)
    }

    fn start<'j>(&self, job: &'j Job, overview: &Overview) -> Result<AtWork<'j>, ExecuteError> {
        let from_step = newest_checkpoint(&job.folder.checkpoints());
        let mut command = Command::new(&self.program);
        command.arg(job.command).arg("--config").arg(self.folder.write_config(job)?);
        command.arg("--output").arg(job.folder.path()).arg("--auto-resume").args(&self.arguments);
        if self.at_a_time > 1 {
            command.env("RAYON_NUM_THREADS", threads_of_each(self.at_a_time).to_string());
        }
        let mut log = self.log(&job.name)?;
        writeln!(log, "{STARTED}{from_step}").map_err(|source| StudyFolderError::File {
            path: self.folder.log(&job.name),
            source,
        })?;
        let error = |source| self.process_error(source);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(error)?).stderr(log);
        self.bind_to_this_process(&mut command);
        let process = command.spawn().map_err(error)?;
        Ok(AtWork {
            job,
            process,
            started: Instant::now(),
            from_step,
            tail: MetricsTail::new(job.folder.metrics()),
            bar: overview.start(job, from_step),
        })
    }

    /// Where a job's process writes to; what those before it wrote stays.
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

    /// Why a job has failed: the last line that its process wrote.
    fn reason(&self, name: &str, status: ExitStatus) -> String {
        let log = fs::read_to_string(self.folder.log(name)).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        // One that was killed may have said nothing.
        match last.filter(|line| !line.starts_with(STARTED)) {
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

/// Asks a job to save a checkpoint and end.
fn tell_to_stop(process: &Child) {
    #[cfg(unix)]
    {
        // SAFETY: the process is a child that has not been waited for, so the number is its own.
        unsafe { libc::kill(process.id() as libc::pid_t, libc::SIGTERM) };
    }
    #[cfg(not(unix))]
    let _ = process; // It gets the console's Ctrl-C itself.
}
