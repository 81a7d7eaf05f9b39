//! What a person watches while a study runs, on standard error: on a terminal a line for each run at work and one for the
//! whole, elsewhere a plain line when a run starts or ends.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::job::Job;
use crate::json_lines::{JsonLines, LineError};
use crate::metrics::{MetricsRow, TrainRow, ValidRow};
use crate::progress::{ProgressMode, format_count, format_duration};

/// Shows how a study goes.
pub struct Overview {
    mode: ProgressMode,
    lines: MultiProgress,
    whole: ProgressBar,
    jobs: JobCount,
}

/// How many jobs there are, and what they are.
#[derive(Clone, Copy, Debug)]
pub struct JobCount {
    /// What each is: runs, fine-tunings.
    pub noun: &'static str,
    /// All of them.
    pub total: usize,
}

impl Overview {
    /// Watches jobs, of which `done` are done.
    pub fn new(mode: ProgressMode, jobs: JobCount, done: usize) -> Self {
        let lines = MultiProgress::new();
        if mode == ProgressMode::Quiet {
            lines.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        let whole = lines.add(
            ProgressBar::new(jobs.total as u64).with_style(style("{bar:24.green/blue} {wide_msg}")),
        );
        whole.set_position(done as u64);
        Self { mode, lines, whole, jobs }
    }

    /// A line for a job at work.
    pub fn start(&self, job: &Job, from_step: u64) -> ProgressBar {
        let bar = ProgressBar::new(job.steps).with_style(style("{bar:24.cyan/blue} {wide_msg}"));
        let bar = self.lines.insert_before(&self.whole, bar);
        bar.set_position(from_step);
        bar.set_message(job.name.clone());
        let from = if from_step > 0 { format!(" after step {from_step}") } else { String::new() };
        self.plain(&format!("started {}{from}", job.name));
        bar
    }

    /// Shows how far a job is.
    pub fn show(&self, bar: &ProgressBar, job: &Job, tail: &MetricsTail) {
        let Some(row) = &tail.train else { return };
        bar.set_position(row.step);
        let valid = tail.valid.as_ref().map_or(String::new(), |row| format!("  {}", in_words(row)));
        bar.set_message(format!(
            "{}  step {}/{}  loss {:.3}{valid}  {} tokens/s",
            job.name,
            row.step,
            job.steps,
            row.loss,
            format_count(row.tokens_per_second.round() as u64)
        ));
    }

    /// A job has ended.
    pub fn end(&self, bar: &ProgressBar, text: &str) {
        bar.finish_and_clear();
        self.note(text);
    }

    /// Shows how far the whole is.
    pub fn show_whole(&self, done: usize, failed: usize, remaining: Option<f64>) {
        self.whole.set_position((done + failed) as u64);
        self.whole.set_message(self.jobs.whole_line(done, failed, remaining));
    }

    /// A line that stays and says how far the whole is, where there is no live line that does.
    pub fn plain_whole(&self, done: usize, failed: usize, remaining: Option<f64>) {
        self.plain(&self.jobs.whole_line(done, failed, remaining));
    }

    /// Shows a line that stays.
    pub fn note(&self, text: &str) {
        if self.lines.is_hidden() {
            self.plain(text);
        } else {
            // Text that a terminal doesn't take is no reason to stop.
            let _ = self.lines.println(text);
        }
    }

    /// Shows a line that stays, where there is no live line that says the same.
    pub fn plain(&self, text: &str) {
        if self.lines.is_hidden() && self.mode != ProgressMode::Quiet {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Ends the live lines.
    pub fn finish(&self) {
        self.whole.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A validation in a few words.
pub(super) fn in_words(row: &ValidRow) -> String {
    match row.tasks.is_empty() {
        true => format!("validation loss {:.4}", row.loss),
        false => {
            let metrics = row.tasks.iter().flat_map(|task| &task.metrics);
            let metrics = metrics.map(|(name, value)| format!("{name} {value:.4}"));
            metrics.collect::<Vec<_>>().join(", ")
        }
    }
}

impl JobCount {
    /// How far they are, in a line.
    fn whole_line(self, done: usize, failed: usize, remaining: Option<f64>) -> String {
        let Self { noun, total } = self;
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        let eta = remaining
            .map_or(String::new(), |seconds| format!("  ETA {}", format_duration(seconds)));
        format!("{done} of {total} {noun} done{failed}{eta}")
    }
}

/// The end of a run's metrics, read as they grow.
#[derive(Debug)]
pub struct MetricsTail {
    path: PathBuf,
    lines: JsonLines<MetricsRow>,
    /// The last row of training.
    pub train: Option<TrainRow>,
    /// The last row of validation.
    pub valid: Option<ValidRow>,
}

impl MetricsTail {
    /// Of the file `path`, which may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { lines: JsonLines::at(&path), path, train: None, valid: None }
    }

    /// Reads what is new. What can't be read now may be at the next time: it is only to look at.
    pub fn read(&mut self) {
        if self.lines.is_current().is_ok_and(|is_current| !is_current) {
            self.lines = JsonLines::at(&self.path);
        }
        for row in self.lines.by_ref() {
            match row {
                Ok(MetricsRow::Train(row)) => self.train = Some(row),
                Ok(MetricsRow::Valid(row)) => self.valid = Some(row),
                Ok(_) | Err(LineError::Row { .. }) => {}
                Err(LineError::File(_)) => return,
            }
        }
    }
}

/// What jobs have taken, and so what those to come will take.
#[derive(Debug, Default)]
pub struct Pace {
    /// Seconds of the finished jobs of a group.
    groups: BTreeMap<String, Vec<f64>>,
    seconds: f64,
    cost: f64,
}

impl Pace {
    /// A job, or a share of one, has taken so many seconds.
    pub fn add(&mut self, job: &Job, share: f64, seconds: f64) {
        self.seconds += seconds;
        self.cost += share * job.cost;
        if share >= 1.0 {
            self.groups.entry(job.group.clone()).or_default().push(seconds);
        }
    }

    /// What a whole job takes: as those of its group did, or else by what it costs.
    pub fn expect(&self, job: &Job) -> Option<f64> {
        if let Some(seconds) = self.groups.get(&job.group) {
            return Some(seconds.iter().sum::<f64>() / seconds.len() as f64);
        }
        (self.cost > 0.0).then(|| self.seconds / self.cost * job.cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::study::StudyFolder;
    use crate::study::plan::{Cell, PlannedRun};
    use std::path::Path;

    fn run(size: &str, steps: u64) -> Job {
        let mut config = RunConfig::tiny_altup();
        config.training.steps = steps;
        let cell = Cell { size: size.into(), variant: "altup".into(), multiple: 1 };
        let run = PlannedRun { name: format!("{cell}-seed1"), cell, seed: 1, config };
        run.job(&StudyFolder::new(Path::new("study")))
    }

    #[test]
    fn lines_say_how_far_a_study_is() {
        let jobs = JobCount { noun: "runs", total: 12 };
        assert_eq!(jobs.whole_line(3, 0, Some(3720.0)), "3 of 12 runs done  ETA 1h 02m");
        assert_eq!(jobs.whole_line(3, 1, None), "3 of 12 runs done, 1 failed");
    }

    #[test]
    fn runs_to_come_are_expected_from_those_that_ran() {
        let mut pace = Pace::default();
        assert_eq!(pace.expect(&run("tiny", 100)), None);
        // Half of 100 steps took 50 seconds: 100 take 100, and 300 of another cell 300.
        pace.add(&run("tiny", 100), 0.5, 50.0);
        let close = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-6, "{found:?}, not {expected}");
        };
        close(pace.expect(&run("tiny", 100)), 100.0);
        close(pace.expect(&run("other", 300)), 300.0);
        // Where runs of the cell have ended, their own times count.
        pace.add(&run("tiny", 100), 1.0, 80.0);
        pace.add(&run("tiny", 100), 1.0, 90.0);
        close(pace.expect(&run("tiny", 100)), 85.0);
    }

    #[test]
    fn a_tail_follows_metrics_that_grow_and_that_start_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tail = MetricsTail::new(path.clone());
        tail.read();
        assert!(tail.train.is_none(), "the file is not there yet");
        let row = |step: u64| {
            format!(
                "{{\"kind\":\"train\",\"step\":{step},\"loss\":2.5,\"learning_rate\":1.0,\"grad_norm\":1.0,\
                 \"tokens\":1,\"tokens_per_second\":1.0,\"elapsed_seconds\":1.0}}\n"
            )
        };
        let text = row(1) + &row(2);
        let (whole, half) = text.split_at(text.len() - 10);
        std::fs::write(&path, whole).unwrap();
        tail.read();
        assert_eq!(tail.train.as_ref().unwrap().step, 1);
        std::fs::write(&path, format!("{whole}{half}")).unwrap();
        tail.read();
        assert_eq!(tail.train.as_ref().unwrap().step, 2);
        std::fs::write(&path, row(1)).unwrap();
        tail.read();
        assert_eq!(tail.train.as_ref().unwrap().step, 1, "the run was started again");
    }
}
