//! What a person watches while a run trains, on standard error.
//!
//! On a terminal, one live line; results that stay are printed above it. In a file or a pipe, a
//! plain line for each result, without control characters.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use altup_data::PrepareProgress;

use crate::metrics::{TrainRow, ValidRow};

/// How much a run shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressMode {
    /// A live line on a terminal, plain lines elsewhere.
    Auto,
    /// Nothing but warnings.
    Quiet,
    /// Nothing at all: another process shows how the run goes.
    Silent,
}

/// Shows how a training run goes.
#[derive(Debug)]
pub struct Progress {
    form: Form,
    total_steps: u64,
    started: Instant,
    pace: Pace,
    last: Option<TrainRow>,
    /// How many processes train together.
    replicas: usize,
    /// What the live line says of the last row.
    figures: String,
}

#[derive(Debug)]
enum Form {
    Terminal(ProgressBar),
    Plain,
    Quiet,
    Silent,
}

/// What a step is on the bar, so that it moves within one.
const PARTS: u64 = 256;

/// Where a step is on the bar.
fn parts(step: u64) -> u64 {
    step.saturating_mul(PARTS)
}

const BAR_TEMPLATE: &str = "{bar:24.cyan/blue} {wide_msg}";

impl Progress {
    /// Watches a run that goes from `start_step` (0, or where it resumes) to `total_steps`.
    pub fn new(mode: ProgressMode, total_steps: u64, start_step: u64) -> Self {
        Self {
            form: Form::new(mode, total_steps, start_step),
            total_steps,
            started: Instant::now(),
            pace: Pace::starting_at(start_step),
            last: None,
            replicas: 1,
            figures: String::new(),
        }
    }

    /// Shows what a run of several replicas has besides.
    pub fn among(self, replicas: usize) -> Self {
        Self { replicas, ..self }
    }

    /// Training begins behind `step` (0, or where the run resumes); what came before was
    /// preparation.
    pub fn start(&mut self, step: u64) {
        self.started = Instant::now();
        self.pace = Pace::starting_at(step);
        if let Form::Terminal(bar) = &self.form {
            bar.set_position(parts(step));
        }
    }

    /// Shows that `done` of the micro-batches of step `step`, which has `of`, are through: on a terminal the live
    /// line moves, elsewhere nothing is written.
    pub fn micro_batch(&self, step: u64, done: u64, of: u64) {
        let Form::Terminal(bar) = &self.form else { return };
        let position = (step - 1) as f64 + done as f64 / of as f64;
        let remaining = self.pace.remaining(self.total_steps, position, self.started.elapsed());
        let place = live_place(step, self.total_steps, done, of);
        bar.set_message(format!("{place}{}{}", self.figures, eta(remaining)));
        bar.set_position((position * PARTS as f64) as u64);
    }

    /// Shows what the last training steps came to; call it once for each row of the record.
    pub fn train(&mut self, row: &TrainRow) {
        self.pace.mark(row.step, self.started.elapsed());
        self.figures = figures(row, self.last.as_ref(), self.replicas);
        let (step, total) = (row.step, self.total_steps);
        let remaining = self.pace.remaining(total, step as f64, self.started.elapsed());
        let line = format!("step {step}/{total}{}{}", self.figures, eta(remaining));
        match &self.form {
            Form::Terminal(bar) => {
                bar.set_message(line);
                bar.set_position(parts(step));
            }
            Form::Plain => write_line(&line),
            Form::Quiet | Form::Silent => {}
        }
        self.last = Some(row.clone());
    }

    /// Shows the score of a pass over the validation data, to stay.
    pub fn valid(&self, row: &ValidRow) {
        self.note(&valid_line(row, self.total_steps));
    }

    /// Shows a line that stays.
    pub fn note(&self, text: &str) {
        match &self.form {
            Form::Terminal(bar) => bar.println(text),
            Form::Plain => write_line(text),
            Form::Quiet | Form::Silent => {}
        }
    }

    /// Shows a line that stays, of something that people should know: also where nothing else is shown.
    pub fn warn(&self, text: &str) {
        match &self.form {
            Form::Terminal(bar) => bar.suspend(|| write_line(text)),
            Form::Plain | Form::Quiet => write_line(text),
            Form::Silent => {}
        }
    }

    /// Says what is being prepared, with its size ([`format_bytes`]) where that tells how long it
    /// takes. On a terminal the next stage, or the first step, takes its place.
    pub fn stage(&self, text: &str) {
        match &self.form {
            Form::Terminal(bar) => bar.set_message(text.to_owned()),
            Form::Plain => write_line(text),
            Form::Quiet | Form::Silent => {}
        }
    }

    /// Watches how a text is prepared: what is returned is to be told how far that is. `name` says
    /// which text, as in "tokenizing the {name} text".
    pub fn preparation<'a>(&'a self, name: &'a str) -> Preparation<'a> {
        Preparation {
            progress: self,
            work: "tokenizing",
            name,
            started: Instant::now(),
            last_line: None,
        }
    }

    /// Watches likewise how the files of a text are read to tell by their hashes what they are.
    pub fn identification<'a>(&'a self, name: &'a str) -> Preparation<'a> {
        Preparation { work: "hashing", ..self.preparation(name) }
    }

    /// Ends the live line, leaving on the screen how far the run came.
    pub fn finish(&self) {
        if let Form::Terminal(bar) = &self.form {
            bar.abandon();
        }
    }
}

/// Shows how a text is prepared: on a terminal a live line, elsewhere a line a minute.
#[derive(Debug)]
pub struct Preparation<'a> {
    progress: &'a Progress,
    work: &'static str,
    name: &'a str,
    started: Instant,
    last_line: Option<Instant>,
}

impl Preparation<'_> {
    /// How often a line is written where lines stay.
    const LINE_EVERY: Duration = Duration::from_secs(60);

    /// Shows how far it is. A text that is found prepared is not worth a line.
    pub fn show(&mut self, so_far: PrepareProgress) {
        let finished = so_far.shards_done == so_far.shards;
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= Self::LINE_EVERY);
        let line = || preparation_line(self.work, self.name, so_far, self.started.elapsed());
        match &self.progress.form {
            Form::Terminal(bar) if !finished => bar.set_message(line()),
            Form::Plain if !finished && is_due => {
                write_line(&line());
                self.last_line = Some(Instant::now());
            }
            Form::Terminal(_) | Form::Plain | Form::Quiet | Form::Silent => {}
        }
    }
}

fn preparation_line(work: &str, name: &str, so_far: PrepareProgress, elapsed: Duration) -> String {
    let PrepareProgress { shards_done, shards, bytes_done, bytes_found, bytes, bytes_hashed } =
        so_far;
    let mut line = format!(
        "{work} the {name} text: {shards_done} of {shards} shards, {} of {}",
        format_bytes(bytes_done),
        format_bytes(bytes)
    );
    // Of what is found prepared, this is all that takes time.
    if bytes_hashed > 0 && work != "hashing" {
        line.push_str(&format!(", {} hashed", format_bytes(bytes_hashed)));
    }
    // What was found done says nothing about the pace.
    let read = bytes_done.saturating_sub(bytes_found);
    if read > 0 && elapsed > Duration::from_secs(2) {
        let left = bytes.saturating_sub(bytes_done) as f64;
        let seconds = elapsed.as_secs_f64() * left / read as f64;
        line.push_str(&format!("  ETA {}", format_duration(seconds)));
    }
    line
}

impl Form {
    fn new(mode: ProgressMode, total_steps: u64, start_step: u64) -> Self {
        match mode {
            ProgressMode::Auto => {}
            ProgressMode::Quiet => return Self::Quiet,
            ProgressMode::Silent => return Self::Silent,
        }
        let all = Some(parts(total_steps));
        let bar = ProgressBar::with_draw_target(all, ProgressDrawTarget::stderr());
        // indicatif hides a bar where control characters would do harm (a file, a pipe,
        // TERM=dumb): ask it, so that there is one opinion on what a terminal is.
        if bar.is_hidden() {
            return Self::Plain;
        }
        let style = ProgressStyle::with_template(BAR_TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self::Terminal(bar.with_style(style).with_position(parts(start_step)))
    }
}

/// Steps per second over the last rows: validation and checkpoints count, a slow start is soon
/// forgotten.
#[derive(Debug)]
struct Pace {
    /// Steps done, and when, oldest first; never empty.
    marks: VecDeque<(u64, Duration)>,
}

impl Pace {
    /// How many marks are looked back over.
    const WINDOW: usize = 20;

    fn starting_at(step: u64) -> Self {
        Self { marks: VecDeque::from([(step, Duration::ZERO)]) }
    }

    fn mark(&mut self, step: u64, at: Duration) {
        self.marks.push_back((step, at));
        if self.marks.len() > Self::WINDOW {
            self.marks.pop_front();
        }
    }

    /// Seconds until `total_steps` from `position`, which was reached `at`. Before there are two marks, the pace is
    /// that since the start; none if there is none yet.
    fn remaining(&self, total_steps: u64, position: f64, at: Duration) -> Option<f64> {
        let (&(first, since), &(last, until)) = (self.marks.front()?, self.marks.back()?);
        let (steps, time) = match last > first {
            true => ((last - first) as f64, until.saturating_sub(since)),
            false => (position - first as f64, at.saturating_sub(since)),
        };
        let seconds_per_step = (steps > 0.0).then(|| time.as_secs_f64() / steps)?;
        Some((total_steps as f64 - position).max(0.0) * seconds_per_step)
    }
}

/// Where a run is within a step.
fn live_place(step: u64, total_steps: u64, done: u64, of: u64) -> String {
    match of {
        1 => format!("step {step}/{total_steps}"),
        _ => format!("step {step}/{total_steps}, micro-batch {done}/{of}"),
    }
}

/// What a row says beside its step. That a run waits for its data is worth a word from a twentieth of the time on.
fn figures(row: &TrainRow, before: Option<&TrainRow>, replicas: usize) -> String {
    let speed = format_count(row.tokens_per_second.round() as u64);
    let mut text = format!("  loss {:.3}  {speed} tokens/s", row.loss);
    if replicas > 1 {
        text.push_str(&format!("  {replicas} replicas"));
    }
    let Some(before) = before else { return text };
    let share = |seconds: f64| 100.0 * seconds / (row.elapsed_seconds - before.elapsed_seconds);
    if let Some(exchange) = row.exchange_seconds {
        text.push_str(&format!(", exchange {:.0} %", share(exchange)));
    }
    if let Some(waited) = row.data_wait_seconds.map(share).filter(|share| *share >= 5.0) {
        text.push_str(&format!("  waiting for data {waited:.0} %"));
    }
    text
}

fn eta(remaining: Option<f64>) -> String {
    remaining.map_or_else(String::new, |seconds| format!("  ETA {}", format_duration(seconds)))
}

fn valid_line(row: &ValidRow, total_steps: u64) -> String {
    let mut line = format!(
        "step {}/{total_steps}  validation loss {:.3}  perplexity {:.1}  accuracy {:.1} %",
        row.step,
        row.loss,
        row.perplexity,
        100.0 * row.accuracy
    );
    if let Some(text) = &row.text {
        line.push_str(&format!(", of text {:.1} %", 100.0 * text.accuracy));
    }
    for source in &row.sources {
        line.push_str(&format!("  {} {:.3}", source.name, source.loss));
    }
    for task in &row.tasks {
        line.push_str(&format!("  {}", task.task));
        for (metric, value) in &task.metrics {
            line.push_str(&format!(" {metric} {value:.3}"));
        }
    }
    line
}

fn write_line(line: &str) {
    // Training must not stop because nobody can read how it goes (a closed pipe, a full disk).
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A length of time to the precision a person needs: `12s`, `3m 20s`, `1h 02m`, `2d 03h`.
pub fn format_duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d {:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// A count to about three digits: `940`, `1.2k`, `345k`, `1.2M`.
pub fn format_count(count: u64) -> String {
    scaled(count, ["", "k", "M", "G", "T"])
}

/// A size in decimal units to about three digits: `940 B`, `1.2 kB`, `345 MB`.
pub fn format_bytes(bytes: u64) -> String {
    scaled(bytes, [" B", " kB", " MB", " GB", " TB"])
}

fn scaled(value: u64, units: [&str; 5]) -> String {
    let (mut scaled, mut unit) = (value as f64, 0);
    // 999.5 and not 1000: what would round up to 1000 belongs to the next unit.
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && scaled < 99.95);
    format!("{scaled:.decimals$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{SourceScore, TaskScore, TokenScore};

    fn row(step: u64) -> TrainRow {
        TrainRow {
            step,
            loss: 3.21449,
            tokens_per_second: 5210.4,
            elapsed_seconds: step as f64,
            ..TrainRow::default()
        }
    }

    #[test]
    fn the_bar_template_is_valid() {
        assert!(ProgressStyle::with_template(BAR_TEMPLATE).is_ok());
    }

    #[test]
    fn durations_read_well() {
        let cases = [
            (0.2, "0s"),
            (12.0, "12s"),
            (59.6, "1m 00s"),
            (200.0, "3m 20s"),
            (3720.0, "1h 02m"),
            (183_600.0, "2d 03h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(format_duration(seconds), text);
        }
    }

    #[test]
    fn counts_and_bytes_read_well() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (1_234_567, "1.2M"),
            (99_949, "99.9k"),
            (99_951, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
        ];
        for (count, text) in cases {
            assert_eq!(format_count(count), text);
        }
        assert_eq!(format_bytes(940), "940 B");
        assert_eq!(format_bytes(12_345_678), "12.3 MB");
    }

    #[test]
    fn lines_say_where_the_run_is() {
        assert_eq!(live_place(20, 1000, 1, 1), "step 20/1000");
        assert_eq!(live_place(20, 1000, 3, 16), "step 20/1000, micro-batch 3/16");
        assert_eq!(figures(&row(20), None, 1), "  loss 3.214  5.2k tokens/s");
        assert_eq!(figures(&row(20), None, 4), "  loss 3.214  5.2k tokens/s  4 replicas");
        let exchanges = TrainRow { exchange_seconds: Some(2.0), ..row(20) };
        assert!(figures(&exchanges, Some(&row(10)), 4).ends_with("  4 replicas, exchange 20 %"));
        let waits = |seconds| TrainRow { data_wait_seconds: Some(seconds), ..row(20) };
        assert_eq!(figures(&waits(0.4), Some(&row(10)), 1), figures(&row(20), None, 1));
        assert!(figures(&waits(2.5), Some(&row(10)), 1).ends_with("  waiting for data 25 %"));
        assert_eq!((eta(Some(200.0)), eta(None)), ("  ETA 3m 20s".into(), String::new()));
        let score =
            |name: &str, loss| SourceScore { name: name.into(), loss, ..SourceScore::default() };
        let mut valid = ValidRow {
            step: 20,
            loss: 3.0,
            perplexity: 20.09,
            accuracy: 0.412,
            tokens: 9,
            ..ValidRow::default()
        };
        let line = "step 20/1000  validation loss 3.000  perplexity 20.1  accuracy 41.2 %";
        assert_eq!(valid_line(&valid, 1000), line);
        valid.text = Some(TokenScore { loss: 4.0, accuracy: 0.082, tokens: 6 });
        assert_eq!(valid_line(&valid, 1000), format!("{line}, of text 8.2 %"));
        valid.text = None;
        valid.sources = vec![score("news", 2.5), score("books", 3.5)];
        assert_eq!(valid_line(&valid, 1000), format!("{line}  news 2.500  books 3.500"));
        valid.sources.clear();
        valid.tasks = vec![TaskScore {
            task: "mrpc".into(),
            split: "validation".into(),
            examples: 408,
            metrics: [("f1".to_owned(), 0.8), ("accuracy".to_owned(), 0.7)].into(),
        }];
        assert_eq!(valid_line(&valid, 1000), format!("{line}  mrpc accuracy 0.700 f1 0.800"));
    }

    #[test]
    fn preparation_says_what_is_left_and_how_long_it_takes() {
        let so_far = PrepareProgress {
            shards_done: 600,
            shards: 1024,
            bytes_done: 1_200_000_000,
            bytes_found: 1_000_000_000,
            bytes: 2_000_000_000,
            bytes_hashed: 0,
        };
        // 0.2 GB in ten seconds, and 0.8 GB are left.
        assert_eq!(
            preparation_line("tokenizing", "training", so_far, Duration::from_secs(10)),
            "tokenizing the training text: 600 of 1024 shards, 1.2 GB of 2.0 GB  ETA 40s"
        );
        let hashed = PrepareProgress { bytes_hashed: 300_000_000, ..so_far };
        assert_eq!(
            preparation_line("tokenizing", "training", hashed, Duration::ZERO),
            "tokenizing the training text: 600 of 1024 shards, 1.2 GB of 2.0 GB, 300 MB hashed"
        );
        let start = PrepareProgress { bytes_done: 1_000_000_000, ..so_far };
        assert!(
            preparation_line("tokenizing", "training", start, Duration::from_secs(10))
                .ends_with("of 2.0 GB")
        );
    }

    #[test]
    fn the_pace_follows_the_latest_rows() {
        let mut pace = Pace::starting_at(100);
        let seconds = Duration::from_secs;
        assert_eq!(pace.remaining(200, 100.0, seconds(0)), None, "no step yet");
        assert_eq!(pace.remaining(200, 100.5, seconds(1)), Some(199.0), "half a step in a second");
        pace.mark(110, seconds(10));
        assert_eq!(pace.remaining(200, 110.0, seconds(10)), Some(90.0), "counted from the resume");
        // Twice as fast from here on: once the window has passed, the start is forgotten.
        for mark in 1..=Pace::WINDOW as u64 {
            pace.mark(110 + 2 * mark, seconds(10 + mark));
        }
        assert_eq!(pace.remaining(200, 150.0, seconds(30)), Some(25.0));
        assert_eq!(pace.remaining(200, 160.0, seconds(31)), Some(20.0), "between two rows");
        assert_eq!(pace.remaining(120, 150.0, seconds(30)), Some(0.0), "past the end");
    }

    #[test]
    fn a_quiet_run_can_be_driven() {
        for mode in [ProgressMode::Quiet, ProgressMode::Silent] {
            let mut progress = Progress::new(mode, 10, 0).among(2);
            progress.stage("reading 12.3 MB");
            progress.micro_batch(1, 1, 4);
            progress.train(&row(1));
            progress.note("checkpoint");
            progress.finish();
        }
    }
}
