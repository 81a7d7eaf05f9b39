//! The report of one run, or of several side by side: `report.html`, which needs no other file,
//! and its charts as SVG files in `charts/`.
//!
//! All that a report shows lies in the folders of its runs: it can be written while a run goes on, after it was
//! killed, and years later. `report.html` in this folder is its template.

mod charts;
mod history;
mod marked_text;
mod recording;
mod tasks;
mod thinning;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use crate::durable::replace_view;
use crate::fine_tuning::TaskResults;
use crate::metrics::{MetricsError, ValidRow};
use crate::progress::{format_count, format_duration};
use crate::run_folder::RunFolderError;
use crate::samples::{SampleRow, SamplesError};
use crate::summary::SummaryError;
use charts::Figure;
use history::Quantity;
use marked_text::{Piece, with_blanks, with_written};
use tasks::MistakesView;
use thinning::evenly;

pub use history::History;
pub use recording::{Recording, write_comparison, write_report};

/// Everything a report shows.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the run, or of the comparison.
    pub title: String,
    /// How far the run is; none of a comparison.
    pub status: Option<Status>,
    /// The records of the runs; with several, each chart overlays them.
    pub runs: Vec<RunCurves>,
    /// What was run and on what, as name and value: model, parameters, backend, seed.
    pub facts: Vec<Fact>,
    /// The key numbers.
    pub tiles: Vec<Tile>,
    /// What the model wrote at the validations, in the order of the steps.
    pub samples: Vec<SampleRow>,
    /// The resolved configuration, as text.
    pub configuration: String,
}

/// The record of one run.
#[derive(Clone, Debug)]
pub struct RunCurves {
    /// Name of the run in legends and tables.
    pub name: String,
    /// What its `metrics.jsonl` says.
    pub history: History,
    /// What the best model of a finished fine-tuning run made of its tasks.
    pub tasks: Option<TaskResults>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Steps done, as far as they are recorded.
    pub step: u64,
    /// Steps to do.
    pub total: u64,
    /// Whether the run has ended as it was meant to.
    pub is_finished: bool,
}

/// Something that is so of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What it is about.
    pub name: String,
    /// What is so.
    pub value: String,
}

/// One key number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tile {
    /// What the number is.
    pub label: String,
    /// The number, with its unit.
    pub value: String,
    /// A remark in small print; may be empty.
    pub note: String,
}

/// Why a report can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder isn't that of a run.
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    /// The metrics can't be read.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The samples can't be read.
    #[error(transparent)]
    Samples(#[from] SamplesError),
    /// The summary, or what came of tasks, can't be read.
    #[error(transparent)]
    Summary(#[from] SummaryError),
    /// The page can't be made of its template.
    #[error("cannot make the page of a report")]
    Page(#[from] minijinja::Error),
    /// The file system refused.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file or folder that could not be written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl Tile {
    /// The key numbers of a run. `unigram_loss` is the loss of guessing each target token by its
    /// frequency alone, which a model that has learnt anything beats.
    pub fn summary(run: &RunCurves, unigram_loss: Option<f64>) -> Vec<Self> {
        let history = &run.history;
        let mut tiles = tasks::tiles(run);
        let is_of_tasks = !tiles.is_empty();
        let mut add = |label: &str, value: String, note: String| {
            tiles.push(Self { label: label.to_owned(), value, note });
        };
        if let (Some(last), Some(best)) = (history.last_valid(), history.best_valid()) {
            let best_loss = format!("{:.3} at step {}", best.loss, best.step);
            if is_of_tasks {
                let note = format!("of targets; {best_loss}");
                add("Validation loss", format!("{:.3}", last.loss), note);
            } else {
                let note = format!("best {best_loss}");
                add("Validation loss", format!("{:.3}", last.loss), note);
                let note = format!("best {}", decimal(best.perplexity));
                add("Perplexity", decimal(last.perplexity), note);
                let of_text = last.text.map_or(String::new(), |text| {
                    format!("; {} of the text's", percent(text.accuracy))
                });
                add("Accuracy", percent(last.accuracy), format!("of target tokens{of_text}"));
            }
        }
        if let Some(loss) = unigram_loss {
            add(
                "Unigram baseline",
                format!("{loss:.3}"),
                "loss of token frequencies alone".to_owned(),
            );
        }
        if let Some(last) = history.last_train() {
            add("Training loss", format!("{:.3}", last.loss), format!("at step {}", last.step));
            add("Speed", speed(history), "tokens/s, median".to_owned());
            if let Some(flops) = last.flops_per_second {
                let note = last.peak_share.map_or_else(
                    || "model operations".to_owned(),
                    |share| format!("{} of the measured peak", percent(share)),
                );
                add("Model FLOP/s", si_count(flops).trim_end().to_owned(), note);
            }
            add(
                "Training time",
                format_duration(last.elapsed_seconds),
                format!("{} steps", last.step),
            );
            add("Tokens seen", format_count(last.tokens), "input and target".to_owned());
        }
        tiles
    }
}

/// What the template shows.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    style: &'a str,
    status: Option<StatusView>,
    facts: &'a [Fact],
    tiles: &'a [Tile],
    comparison: Option<Table>,
    samples: Vec<SampleView>,
    curves: Vec<FigureView>,
    coefficient_maps: Vec<FigureView>,
    coefficient_curves: Vec<FigureView>,
    validation: Vec<Table>,
    sources: Vec<Table>,
    experts: Vec<Table>,
    mistakes: Vec<MistakesView>,
    configuration: &'a str,
}

/// Rows of the table of validations, but for the best one.
const TABLE_ROWS: usize = 100;
/// Steps of which it is shown what the model wrote.
const SAMPLES: usize = 40;

/// A table of a page.
#[derive(Serialize)]
struct Table {
    heading: String,
    header: Vec<String>,
    rows: Vec<TableRow>,
}

#[derive(Serialize)]
struct TableRow {
    cells: Vec<String>,
    is_best: bool,
}

/// A prompt, and what the model made of it at each validation.
#[derive(Serialize)]
struct SampleView {
    prompt: Vec<Piece>,
    last: FilledView,
    earlier: Vec<FilledView>,
}

#[derive(Serialize)]
struct FilledView {
    step: u64,
    text: Vec<Piece>,
}

#[derive(Serialize)]
struct FigureView {
    svg: String,
    half: Option<String>,
}

#[derive(Serialize)]
struct StatusView {
    text: String,
    is_running: bool,
    step: u64,
    total: u64,
    percent: String,
}

impl Report {
    /// Writes `report.html` and `charts/*.svg` into `folder`, each file whole or not at all.
    ///
    /// # Errors
    ///
    /// [`ReportError::Write`] naming the file that could not be written.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let chart_folder = folder.join("charts");
        fs::create_dir_all(&chart_folder)
            .map_err(|source| ReportError::Write { path: chart_folder.clone(), source })?;
        let curves = charts::curves(&self.runs);
        let (maps, of_layers) = match &self.runs[..] {
            [run] => charts::coefficients(&run.history),
            _ => (Vec::new(), Vec::new()),
        };
        for figure in curves.iter().chain(&maps).chain(&of_layers) {
            write_file(chart_folder.join(&figure.file), &figure.svg)?;
        }
        write_file(folder.join("report.html"), &self.page(curves, maps, of_layers)?)
    }

    fn page(
        &self,
        curves: Vec<Figure>,
        maps: Vec<Figure>,
        of_layers: Vec<Figure>,
    ) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_template("report", include_str!("report.html"))?;
        let views = |figures: Vec<Figure>| -> Vec<FigureView> {
            let view = |Figure { svg, half, .. }| FigureView { svg, half };
            figures.into_iter().map(view).collect()
        };
        let page = Page {
            title: &self.title,
            style: include_str!("report.css"),
            status: self.status.map(Status::view),
            facts: &self.facts,
            tiles: &self.tiles,
            comparison: self.comparison(),
            samples: self.samples(),
            curves: views(curves),
            coefficient_maps: views(maps),
            coefficient_curves: views(of_layers),
            validation: self.validation(),
            sources: self.sources(),
            experts: self.experts(),
            mistakes: match &self.runs[..] {
                [run] => tasks::mistakes(run),
                _ => Vec::new(),
            },
            configuration: &self.configuration,
        };
        environment.get_template("report")?.render(Serde(&page))
    }

    /// The runs in a table, where there are several.
    fn comparison(&self) -> Option<Table> {
        if self.runs.len() < 2 {
            return None;
        }
        let tasks = tasks::names(self.runs.iter().map(|run| &run.history));
        let rows = self.runs.iter().map(|run| {
            let history = &run.history;
            let (train, best) = (history.last_train(), history.best_valid());
            let valid = history.last_valid();
            let scores = tasks.iter().map(|task| {
                let of_best = || Some(tasks::score(best?, task)?.mean());
                let score = run.result(task).map(|result| result.score.mean()).or_else(of_best);
                or_dash(score.map(percent))
            });
            let of_loss = [
                or_dash(best.map(|row| format!("{:.3}", row.loss))),
                or_dash(valid.map(|row| format!("{:.3}", row.loss))),
                or_dash(valid.map(|row| percent(row.accuracy))),
                speed(history),
                or_dash(train.map(|row| format_duration(row.elapsed_seconds))),
                or_dash(train.map(|row| format_count(row.tokens))),
            ];
            let cells = std::iter::once(run.name.clone()).chain(scores).chain(of_loss).collect();
            TableRow { cells, is_best: false }
        });
        let loss = if tasks.is_empty() { "Best loss" } else { "Loss at best step" };
        let of_loss =
            header([loss, "Last loss", "Accuracy", "Tokens/s", "Training time", "Tokens seen"]);
        let of_tasks = tasks.iter().map(|task| (*task).to_owned());
        let header = std::iter::once("Run".to_owned()).chain(of_tasks).chain(of_loss).collect();
        Some(Table { heading: String::new(), header, rows: rows.collect() })
    }

    /// The heading of what is shown of a run, where there are several.
    fn heading(&self, run: &RunCurves) -> String {
        if self.runs.len() > 1 { run.name.clone() } else { String::new() }
    }

    fn validation(&self) -> Vec<Table> {
        let table = |run: &RunCurves| {
            let best = run.history.best_valid()?;
            if !best.tasks.is_empty() {
                let prefix =
                    if self.runs.len() > 1 { format!("{}, ", run.name) } else { String::new() };
                return Some(tasks::tables(run, &prefix));
            }
            let all = run.history.validations();
            let mut shown: Vec<&ValidRow> = evenly(&all, TABLE_ROWS).copied().collect();
            if let Err(place) = shown.binary_search_by_key(&best.step, |row| row.step) {
                shown.insert(place, best);
            }
            let rows = shown.into_iter().map(|row| {
                let cells = vec![
                    row.step.to_string(),
                    format!("{:.4}", row.loss),
                    decimal(row.perplexity),
                    percent(row.accuracy),
                    or_dash(row.text.map(|text| format!("{:.4}", text.loss))),
                    or_dash(row.text.map(|text| percent(text.accuracy))),
                    row.tokens.to_string(),
                ];
                TableRow { cells, is_best: row.step == best.step }
            });
            let header = header([
                "Step",
                "Loss",
                "Perplexity",
                "Accuracy",
                "Loss of the text",
                "Accuracy of the text",
                "Target tokens",
            ]);
            Some(vec![Table { heading: self.heading(run), header, rows: rows.collect() }])
        };
        self.runs.iter().filter_map(table).flatten().collect()
    }

    /// The scores of a mixture's sources at the last validation, and how often each was gone through.
    fn sources(&self) -> Vec<Table> {
        let table = |run: &RunCurves| {
            let valid = run.history.last_valid().filter(|row| !row.sources.is_empty())?;
            let epochs = run.history.last_train().map_or(&[][..], |row| &row.epochs);
            let rows = valid.sources.iter().map(|score| {
                let seen = epochs.iter().find(|source| source.name == score.name);
                let cells = vec![
                    score.name.clone(),
                    format!("{:.4}", score.loss),
                    percent(score.accuracy),
                    or_dash(score.text.map(|text| percent(text.accuracy))),
                    score.tokens.to_string(),
                    or_dash(seen.map(|source| format!("{:.2}", source.epochs))),
                ];
                TableRow { cells, is_best: false }
            });
            let header = header([
                "Source",
                "Loss",
                "Accuracy",
                "Accuracy of the text",
                "Target tokens",
                "Epochs",
            ]);
            Some(Table { heading: self.heading(run), header, rows: rows.collect() })
        };
        self.runs.iter().filter_map(table).collect()
    }

    /// How the layers with experts routed the last row's tokens.
    fn experts(&self) -> Vec<Table> {
        let table = |run: &RunCurves| {
            let layers = Some(run.history.routing()).filter(|layers| !layers.is_empty())?;
            let rows = layers.iter().map(|layer| {
                let idle = layer.loads.iter().filter(|&&load| load == 0.0).count();
                let cells = vec![
                    format!("{} {}", layer.stack, layer.layer),
                    format!("{:.2}", layer.peak_load()),
                    format!("{idle} of {}", layer.loads.len()),
                    format!("{:.3}", layer.entropy),
                    percent(layer.dropped),
                    format!("{:.3}", layer.load_balancing_loss),
                    format!("{:.3}", layer.router_z_loss),
                ];
                TableRow { cells, is_best: false }
            });
            let header = header([
                "Layer",
                "Most chosen, × even",
                "Never chosen",
                "Entropy, nats",
                "Dropped",
                "Load balancing",
                "z-loss",
            ]);
            Some(Table { heading: self.heading(run), header, rows: rows.collect() })
        };
        self.runs.iter().filter_map(table).collect()
    }

    /// The prompts in their order, each with all that was written for it.
    fn samples(&self) -> Vec<SampleView> {
        let mut prompts: Vec<&str> = Vec::new();
        for row in &self.samples {
            if !prompts.contains(&row.prompt.as_str()) {
                prompts.push(&row.prompt);
            }
        }
        let view = |prompt: &str| {
            let of_prompt = self.samples.iter().filter(|row| row.prompt == prompt);
            let of_prompt: Vec<&SampleRow> = of_prompt.collect();
            let mut written: Vec<FilledView> = evenly(&of_prompt, SAMPLES)
                .map(|row| FilledView { step: row.step, text: with_written(prompt, &row.filled) })
                .collect();
            let last = written.pop()?;
            Some(SampleView { prompt: with_blanks(prompt), last, earlier: written })
        };
        prompts.into_iter().filter_map(view).collect()
    }
}

impl Status {
    fn view(self) -> StatusView {
        let Self { step, total, is_finished } = self;
        let share = 100.0 * step as f64 / total.max(1) as f64;
        let text = match is_finished {
            true => format!("Finished after {step} steps"),
            false => format!("At step {step} of {total}"),
        };
        StatusView {
            text,
            is_running: !is_finished,
            step,
            total,
            percent: format!("{:.1}", if is_finished { 100.0 } else { share.min(100.0) }),
        }
    }
}

fn write_file(path: PathBuf, contents: &str) -> Result<(), ReportError> {
    replace_view(&path, contents.as_bytes()).map_err(|source| ReportError::Write { path, source })
}

fn header<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).into()
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".to_owned())
}

/// The median: the first row waits for caches and compilers, some rows for the disk.
fn speed(history: &History) -> String {
    let curve = history.curve(Quantity::TokensPerSecond);
    or_dash(curve.map(|curve| format_count(curve.median().round() as u64)))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A rate with its unit's prefix: `8.5 G`.
fn si_count(value: f64) -> String {
    let text = format_count(value.round() as u64);
    match text.find(|letter: char| letter.is_alphabetic()) {
        Some(at) => format!("{} {}", &text[..at], &text[at..]),
        None => text + " ",
    }
}

/// A number of any size with about three digits.
fn decimal(value: f64) -> String {
    match value {
        1000.0.. => format_count(value as u64),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::RunState;
    use crate::coefficients::{CoefficientsRow, LayerCoefficients};
    use crate::config::RunConfig;
    use crate::metrics::{
        MetricsLog, MetricsRow, SourceEpochs, SourceScore, StartRow, TaskScore, TokenScore,
        TrainRow,
    };
    use crate::samples::SamplesLog;

    fn rows(final_loss: f64) -> Vec<MetricsRow> {
        let mut rows = vec![MetricsRow::Start(StartRow {
            parameters: 1_234_567,
            backend: "flex".into(),
            threads: 2,
            text: "12 documents".into(),
            matrix_flops_per_second: Some(8.5e10),
            ..StartRow::default()
        })];
        for step in 1..=100 {
            rows.push(MetricsRow::Train(TrainRow {
                step,
                loss: final_loss + 100.0 / step as f64,
                learning_rate: 1e-3,
                grad_norm: 1.0 / step as f64,
                tokens: 626 * step,
                tokens_per_second: 5000.0,
                elapsed_seconds: 36.0 * step as f64,
                data_wait_seconds: Some(0.1),
                memory_bytes: Some(100_000_000),
                peak_memory_bytes: Some(200_000_000),
                flops_per_second: Some(3.4e10),
                peak_share: Some(0.4),
                ..TrainRow::default()
            }));
            if step % 25 == 0 {
                rows.push(MetricsRow::Valid(ValidRow {
                    step,
                    loss: final_loss + if step == 75 { 0.0 } else { 0.25 },
                    perplexity: final_loss.exp(),
                    accuracy: 0.4321,
                    tokens: 1140,
                    text: Some(TokenScore { loss: 4.5, accuracy: 0.1234, tokens: 800 }),
                    ..ValidRow::default()
                }));
                rows.push(MetricsRow::Coefficients(CoefficientsRow {
                    step,
                    layers: vec![LayerCoefficients {
                        stack: "encoder".into(),
                        layer: 0,
                        p: vec![vec![1.0, 0.1], vec![-0.2, 0.9]],
                        g: vec![1.0, 0.01 * step as f64],
                        sequence: Vec::new(),
                    }],
                }));
            }
        }
        rows
    }

    fn sample(step: u64, filled: &str) -> SampleRow {
        let prompt = "Thank you <extra_id_0> me to your party <extra_id_1> week.";
        SampleRow { step, prompt: prompt.to_owned(), filled: filled.to_owned() }
    }

    fn curves(name: &str, history: History) -> RunCurves {
        RunCurves { name: name.to_owned(), history, tasks: None }
    }

    fn report(names: &[&str]) -> Report {
        let runs = names.iter().map(|name| curves(name, History::of(&rows(3.125)))).collect();
        Report {
            title: "altup-s <K=2>".to_owned(),
            status: Some(Status { step: 100, total: 400, is_finished: false }),
            runs,
            facts: vec![Fact { name: "Model".to_owned(), value: "AltUp & K = 2".to_owned() }],
            tiles: Tile::summary(&curves("", History::of(&rows(3.125))), Some(7.5)),
            samples: vec![
                sample(25, "Thank you the me to your party the week."),
                sample(50, "Thank you for <b>inviting</b> me to your party last week."),
            ],
            configuration: "title = \"<script>\"\n".to_owned(),
        }
    }

    fn written(report: &Report) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path()).unwrap();
        let html = fs::read_to_string(folder.path().join("report.html")).unwrap();
        (folder, html)
    }

    #[test]
    fn a_report_holds_the_numbers_and_needs_nothing_else() {
        let (folder, html) = written(&report(&["altup"]));
        for text in [
            "<h1>altup-s &lt;K=2&gt;</h1>",
            "AltUp &amp; K = 2",
            ">3.375<",
            "best 3.125 at step 75",
            "43.2 %",
            "7.500",
            "5.0k",
            "34.0 G",
            "40.0 % of the measured peak",
            "1h 00m",
            "62.6k",
            "<tr class=\"best\"><td>75</td><td>3.1250</td>",
            "title = &quot;&lt;script&gt;&quot;",
            "Coefficients of the encoder at step 100",
            "<mark class=\"blank\">&lt;extra_id_0&gt;</mark>",
            "<mark class=\"written\"> for &lt;b&gt;inviting&lt;&#x2f;b&gt; </mark>",
            "<span class=\"step\">25</span>",
        ] {
            assert!(html.contains(text), "{text} is missing");
        }
        let linked = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!linked.contains("http:") && !linked.contains("https") && !linked.contains("src="));
        let mut charts: Vec<_> = fs::read_dir(folder.path().join("charts"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        charts.sort();
        assert_eq!(
            charts,
            [
                "accuracy.svg",
                "coefficients_encoder.svg",
                "coefficients_encoder_0.svg",
                "data_wait.svg",
                "gradient_norm.svg",
                "learning_rate.svg",
                "loss.svg",
                "memory.svg",
                "text_accuracy.svg",
                "tokens_per_second.svg",
                "utilization.svg"
            ]
        );
    }

    #[test]
    fn a_page_loads_itself_again_until_the_run_is_finished() {
        let running = report(&["altup"]);
        let (_folder, html) = written(&running);
        assert!(html.contains("http-equiv=\"refresh\"") && html.contains("At step 100 of 400"));
        assert!(html.contains("style=\"width:25.0%\""));
        let status = Some(Status { step: 400, total: 400, is_finished: true });
        let (_folder, html) = written(&Report { status, ..running });
        assert!(!html.contains("refresh") && html.contains("Finished after 400 steps"));
    }

    #[test]
    fn several_runs_are_compared() {
        let compared = Report { status: None, ..report(&["dense", "altup & co"]) };
        let (_folder, html) = written(&compared);
        assert!(html.contains("<h2>Comparison</h2>") && !html.contains("refresh"));
        assert!(html.contains("<td>altup &amp; co</td><td>3.125</td><td>3.375</td>"));
        assert!(html.contains("dense, training") && html.contains("dense, validation"));
    }

    #[test]
    fn the_sources_of_a_mixture_have_curves_and_a_table_while_the_run_goes_on() {
        let mixed = |name: &str| {
            let mut rows = rows(3.125);
            for row in &mut rows {
                match row {
                    MetricsRow::Train(row) => {
                        let of = |name: &str, times: f64| SourceEpochs {
                            name: name.to_owned(),
                            epochs: times * row.step as f64,
                        };
                        row.epochs = vec![of("web", 0.01), of("old & new", 0.0234)];
                    }
                    MetricsRow::Valid(row) => {
                        let of = |name: &str, loss: f64| SourceScore {
                            name: name.to_owned(),
                            loss,
                            accuracy: 0.25,
                            tokens: 77,
                            text: Some(TokenScore { loss: 3.0, accuracy: 0.125, tokens: 50 }),
                        };
                        row.sources = vec![of("web", 2.5), of("old & new", row.loss)];
                    }
                    _ => {}
                }
            }
            curves(name, History::of(&rows))
        };
        let one = Report { runs: vec![mixed("altup")], ..report(&[]) };
        let (folder, html) = written(&one);
        assert!(
            html.contains("<td>old &amp; new</td><td>3.3750</td><td>25.0 %</td><td>12.5 %</td>"),
            "{html}"
        );
        assert!(html.contains("<td>77</td><td>2.34</td>") && html.contains("<td>1.00</td>"));
        assert!(html.contains("old &amp; new: 4 points, from 3.38 at 25.0"), "{html}");
        for file in ["source_loss.svg", "source_accuracy.svg", "source_epochs.svg"] {
            assert!(folder.path().join("charts").join(file).exists(), "{file}");
        }

        let two = Report { runs: vec![mixed("a"), mixed("b")], ..report(&[]) };
        let (folder, html) = written(&two);
        assert!(html.contains("Validation loss of old &amp; new"), "{html}");
        assert!(html.contains("<h3>b</h3>"));
        assert!(folder.path().join("charts/source_2_loss.svg").exists());
    }

    /// Two tasks, of which one has two metrics; the best mean score is at step 75, the best loss at the last step.
    fn task_rows() -> Vec<MetricsRow> {
        let mut rows = rows(3.125);
        for row in &mut rows {
            let MetricsRow::Valid(row) = row else { continue };
            let score = |task: &str, metrics: &[(&str, f64)]| TaskScore {
                task: task.to_owned(),
                split: "validation".to_owned(),
                examples: 40,
                metrics: metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
            };
            let best = if row.step == 75 { 0.25 } else { 0.0 };
            row.loss = 1.0 / row.step as f64;
            row.tasks = vec![
                score("sst2", &[("accuracy", 0.5 + best)]),
                score("mrpc", &[("f1", 0.625), ("accuracy", 0.375 + best)]),
            ];
        }
        rows
    }

    fn task_results() -> TaskResults {
        let json = serde_json::json!({
            "step": 75, "mean_score": 0.6875,
            "tasks": [{
                "task": "sst2", "split": "validation", "examples": 872, "metrics": {"accuracy": 0.734375},
                "loss": 0.5, "training_examples": 1000,
                "majority": {
                    "label": "positive",
                    "task": "sst2", "split": "validation", "examples": 872, "metrics": {"accuracy": 0.515625}
                },
                "mistakes": [{
                    "id": "17", "input": "sst2 sentence: not <bad> at all", "target": "positive",
                    "output": "negative", "loss": 2.5, "confidence": 0.9375, "margin": -2.75
                }]
            }]
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_fine_tuning_run_has_its_tasks_their_best_step_and_its_worst_mistakes() {
        let history = History::of(&task_rows());
        let running = curves("tuned", history.clone());
        let tiles = Tile::summary(&running, None);
        let shown: Vec<(&str, &str)> =
            tiles.iter().map(|tile| (tile.label.as_str(), tile.value.as_str())).collect();
        // (0.75 + (0.625 + 0.625) / 2) / 2.
        let expected = [("Mean score", "68.8 %"), ("sst2", "75.0 %"), ("mrpc", "62.5 %")];
        assert_eq!(shown[..3], expected);
        assert!(!shown.iter().any(|(label, _)| *label == "Perplexity"));
        assert_eq!(tiles[0].note, "at step 75");
        let (_folder, html) = written(&Report { runs: vec![running], ..report(&[]) });
        assert!(
            html.contains("sst2: 40 examples of validation") && !html.contains("mistakes</h2>")
        );

        let finished = RunCurves { tasks: Some(task_results()), ..curves("tuned", history) };
        let tiles = Tile::summary(&finished, None);
        assert_eq!((tiles[1].value.as_str(), tiles[2].value.as_str()), ("73.4 %", "62.5 %"));
        assert_eq!(tiles[1].note, "accuracy; always “positive”: 51.6 %");
        let (folder, html) = written(&Report { runs: vec![finished.clone()], ..report(&[]) });
        for text in [
            "<tr class=\"best\"><td>75</td><td>75.00</td>",
            "<tr><td>100</td><td>50.00</td><td>0.0100</td>",
            "<td>step 75, all 872 examples</td><td>73.44</td><td>0.5000</td>",
            "<td>always “positive”</td><td>51.56</td><td>–</td>",
            "<th>accuracy, %</th><th>f1, %</th>",
            "Worst mistakes",
            "not &lt;bad&gt; at all",
            "margin −2.75 nats · sure to 93.8 %",
        ] {
            assert!(html.contains(text), "{text} is missing");
        }
        for file in ["score_sst2.svg", "score_mrpc.svg"] {
            assert!(folder.path().join("charts").join(file).exists(), "{file}");
        }

        let two = Report {
            runs: vec![finished, curves("plain", History::of(&rows(2.0)))],
            ..report(&[])
        };
        let (_folder, html) = written(&two);
        assert!(html.contains("<td>tuned</td><td>73.4 %</td><td>62.5 %</td>"), "{html}");
        assert!(html.contains("<td>plain</td><td>–</td><td>–</td>"));
        assert!(html.contains("<h3>tuned, sst2: 40 examples of validation</h3>"));
    }

    #[test]
    fn a_report_of_a_long_run_is_no_larger_than_one_of_a_shorter() {
        let size = |validations: u64| {
            let rows = (1..=20 * validations).flat_map(|step| {
                let train = MetricsRow::Train(TrainRow {
                    step,
                    loss: 3.0 + (step as f64).sin(),
                    grad_norm: 1.0,
                    tokens_per_second: 5000.0,
                    ..TrainRow::default()
                });
                let valid = MetricsRow::Valid(ValidRow {
                    step,
                    loss: 3.0 + (step as f64).cos(),
                    perplexity: 20.0,
                    accuracy: 0.5,
                    tokens: 1140,
                    ..ValidRow::default()
                });
                let valid = (step % 20 == 0).then_some(valid);
                std::iter::once(train).chain(valid)
            });
            let mut history = History::default();
            rows.for_each(|row| history.push(&row));
            let steps = 1..=validations;
            let report = Report {
                runs: vec![curves("long", history)],
                samples: steps.map(|step| sample(20 * step, "as it is")).collect(),
                ..report(&[])
            };
            written(&report).1.len()
        };
        let (short, long) = (size(1000), size(20_000));
        assert!(long < short + short / 5, "{short} and {long} bytes");
    }

    #[test]
    fn a_report_is_computed_from_the_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let config = RunConfig::tiny_altup();
        fs::write(path("config.toml"), config.to_toml()).unwrap();
        write_report(folder.path()).unwrap();
        let html = fs::read_to_string(path("report.html")).unwrap();
        assert!(html.contains("no data") && !html.contains("<h2>Validation</h2>"));
        let total = config.training.steps;
        assert!(html.contains(&format!("At step 0 of {total}")));

        let mut log = MetricsLog::create(&path("metrics.jsonl")).unwrap();
        for row in rows(3.125) {
            log.append(&row).unwrap();
        }
        let begun = RunState::default();
        let mut samples = SamplesLog::open(&path("samples.jsonl"), &begun).unwrap();
        samples.record(25, &[sample(25, "as it is")]).unwrap();
        write_report(folder.path()).unwrap();
        let html = fs::read_to_string(path("report.html")).unwrap();
        for text in [
            &format!("At step 100 of {total}"),
            "1.2M parameters",
            "85.0 GFLOP&#x2f;s in matrix products",
            "peak memory 200 MB",
            "<p>as it is</p>",
        ] {
            assert!(html.contains(text), "{text} is missing");
        }
        let summary = path("summary.json");
        fs::write(&summary, "{\"steps\": 100}").unwrap();
        let message = write_report(folder.path()).unwrap_err().to_string();
        assert!(message.contains("summary.json"), "{message}");
    }

    #[test]
    fn a_folder_without_a_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(write_report(folder.path()), Err(ReportError::Folder(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    }
}
