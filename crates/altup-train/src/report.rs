//! The report of one run, or of several side by side: `report.html`, which needs no other file,
//! and its charts as SVG files in `charts/`.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::chart::{ChartError, LineChart, Series, Stroke};
use crate::metrics::{MetricsRow, RoutingRow, TrainRow, ValidRow, replace_file};
use crate::progress::{format_count, format_duration};

/// Everything a report shows.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the run, or of the comparison.
    pub title: String,
    /// The records of the runs; with several, each chart overlays them.
    pub runs: Vec<RunCurves>,
    /// What was run and on what, as name and value: model, parameters, backend, seed.
    pub facts: Vec<(String, String)>,
    /// The key numbers.
    pub tiles: Vec<Tile>,
    /// Text written by the model.
    pub examples: Vec<GeneratedExample>,
    /// The resolved configuration, as text.
    pub configuration: String,
}

/// The record of one run.
#[derive(Clone, Debug)]
pub struct RunCurves {
    /// Name of the run in legends and tables.
    pub name: String,
    /// The rows of its `metrics.jsonl`.
    pub rows: Vec<MetricsRow>,
}

/// One key number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// What the number is.
    pub label: String,
    /// The number, with its unit.
    pub value: String,
    /// A remark in small print; may be empty.
    pub note: String,
}

/// A text with blanks, and what the model made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedExample {
    /// The text the model was given, a sentinel such as `<extra_id_0>` for each blank.
    pub prompt: String,
    /// The same text with the blanks filled, or the model's bare output.
    pub filled: String,
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A chart could not be drawn.
    #[error("cannot draw the charts of the report")]
    Chart(#[from] ChartError),
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
    pub fn summary(rows: &[MetricsRow], unigram_loss: Option<f64>) -> Vec<Self> {
        let summary = Summary::of(rows);
        let mut tiles = Vec::new();
        let mut add = |label: &str, value: String, note: String| {
            tiles.push(Self { label: label.to_owned(), value, note });
        };
        if let (Some(last), Some(best)) = (summary.last_valid, summary.best_valid) {
            let note = format!("best {:.3} at step {}", best.loss, best.step);
            add("Validation loss", format!("{:.3}", last.loss), note);
            add(
                "Perplexity",
                decimal(last.perplexity),
                format!("best {}", decimal(best.perplexity)),
            );
            add("Accuracy", percent(last.accuracy), "of target tokens".to_owned());
        }
        if let Some(loss) = unigram_loss {
            add(
                "Unigram baseline",
                format!("{loss:.3}"),
                "loss of token frequencies alone".to_owned(),
            );
        }
        if let Some(last) = summary.last_train {
            add("Training loss", format!("{:.3}", last.loss), format!("at step {}", last.step));
            add("Speed", speed(&summary), "tokens/s, median".to_owned());
            add("Wall time", format_duration(last.elapsed_seconds), format!("{} steps", last.step));
            add("Tokens seen", format_count(last.tokens), "input and target".to_owned());
        }
        tiles
    }
}

impl Report {
    /// Writes `report.html` and `charts/*.svg` into `folder`, each file whole or not at all.
    ///
    /// # Errors
    /// [`ReportError::Write`] naming the file that could not be written.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let chart_folder = folder.join("charts");
        fs::create_dir_all(&chart_folder)
            .map_err(|source| ReportError::Write { path: chart_folder.clone(), source })?;
        let mut figures = String::new();
        for (name, chart) in self.charts() {
            let svg = chart.svg()?;
            write_file(chart_folder.join(name), &svg)?;
            figures.push_str(&format!("<figure>{svg}</figure>\n"));
        }
        write_file(folder.join("report.html"), &self.html(&figures))
    }

    fn html(&self, figures: &str) -> String {
        format!(
            include_str!("report.html"),
            title = escape(&self.title),
            style = include_str!("report.css"),
            facts = self.facts_html(),
            tiles = self.tiles_html(),
            comparison = self.comparison_html(),
            charts = section("Curves", &format!("<div class=\"charts\">\n{figures}</div>\n")),
            validation = section("Validation", &self.validation_html()),
            experts = section("Experts", &self.experts_html()),
            examples = section("What the model writes", &self.examples_html()),
            configuration = self.configuration_html(),
        )
    }

    /// The charts, with their file names, the most important first.
    fn charts(&self) -> Vec<(&'static str, LineChart)> {
        let chart = |title: &str, y_label: &str, series: Vec<Series>| LineChart {
            title: title.to_owned(),
            x_label: "step".to_owned(),
            y_label: y_label.to_owned(),
            series,
            log_y: false,
            size: LineChart::HALF,
        };
        let loss = chart("Loss", "nats per target token", self.loss_series());
        let accuracy = self.series(Stroke::Marked, |rows| {
            valid_rows(rows).map(|row| (row.step as f64, 100.0 * row.accuracy)).collect()
        });
        let learning_rate = self.series(Stroke::Line, |rows| {
            train_rows(rows).map(|row| (row.step as f64, row.learning_rate)).collect()
        });
        let gradient_norm = self.series(Stroke::Smoothed, |rows| {
            train_rows(rows).map(|row| (row.step as f64, row.grad_norm)).collect()
        });
        let speed = self.series(Stroke::Smoothed, |rows| {
            train_rows(rows).map(|row| (row.step as f64, row.tokens_per_second)).collect()
        });
        let gradient_norm = chart("Gradient norm", "before clipping", gradient_norm);
        let mut charts = vec![
            ("loss.svg", LineChart { size: LineChart::WIDE, ..loss }),
            (
                "accuracy.svg",
                chart("Validation accuracy", "% of target tokens predicted right", accuracy),
            ),
            ("learning_rate.svg", chart("Learning rate", "of the last step", learning_rate)),
            ("gradient_norm.svg", LineChart { log_y: true, ..gradient_norm }),
            ("tokens_per_second.svg", chart("Speed", "input and target tokens per second", speed)),
        ];
        let routed = self.runs.iter().flat_map(|run| train_rows(&run.rows));
        if routed.into_iter().any(|row| !row.routing.is_empty()) {
            let peak = self.routing_series(|layer| layer.peak_load());
            let entropy = self.routing_series(|layer| layer.entropy);
            let dropped = self.routing_series(|layer| 100.0 * layer.dropped);
            charts.extend([
                ("expert_load.svg", chart("Most chosen expert", "times its even share", peak)),
                ("router_entropy.svg", chart("Router entropy", "nats a token", entropy)),
                ("dropped.svg", chart("Dropped by full experts", "% of choices", dropped)),
            ]);
        }
        charts
    }

    /// Of one run a curve for each layer that has experts; of several the mean over a run's layers.
    fn routing_series(&self, value: impl Fn(&RoutingRow) -> f64) -> Vec<Series> {
        let [run] = &self.runs[..] else {
            return self.series(Stroke::Smoothed, |rows| {
                let routed = train_rows(rows).filter(|row| !row.routing.is_empty());
                let mean = |row: &TrainRow| {
                    row.routing.iter().map(&value).sum::<f64>() / row.routing.len() as f64
                };
                routed.map(|row| (row.step as f64, mean(row))).collect()
            });
        };
        let layers = train_rows(&run.rows).map(|row| row.routing.len()).max().unwrap_or(0);
        let of_layer = |number: usize| {
            let rows = train_rows(&run.rows);
            let rows = rows.filter_map(|row| Some((row.step, row.routing.get(number)?)));
            let rows: Vec<(u64, &RoutingRow)> = rows.collect();
            let name = rows.first().map(|(_, layer)| format!("{} {}", layer.stack, layer.layer));
            Series {
                name: name.unwrap_or_default(),
                points: rows.iter().map(|(step, layer)| (*step as f64, value(layer))).collect(),
                color: number,
                stroke: Stroke::Line,
            }
        };
        (0..layers).map(of_layer).collect()
    }

    /// One curve a run.
    fn series(
        &self,
        stroke: Stroke,
        points: impl Fn(&[MetricsRow]) -> Vec<(f64, f64)>,
    ) -> Vec<Series> {
        let runs = self.runs.iter().enumerate();
        runs.map(|(color, run)| Series {
            name: run.name.clone(),
            points: points(&run.rows),
            color,
            stroke,
        })
        .collect()
    }

    /// Training and validation loss: of one run in two colours; of several in a colour a run,
    /// where the training losses stay in the background.
    fn loss_series(&self) -> Vec<Series> {
        let train = |rows: &[MetricsRow]| -> Vec<(f64, f64)> {
            train_rows(rows).map(|row| (row.step as f64, row.loss)).collect()
        };
        let valid = |rows: &[MetricsRow]| -> Vec<(f64, f64)> {
            valid_rows(rows).map(|row| (row.step as f64, row.loss)).collect()
        };
        if let [run] = &self.runs[..] {
            let series = |name: &str, points, color, stroke| Series {
                name: name.to_owned(),
                points,
                color,
                stroke,
            };
            return vec![
                series("training", train(&run.rows), 0, Stroke::Smoothed),
                series("validation", valid(&run.rows), 1, Stroke::Marked),
            ];
        }
        let compared_by_training = self.runs.iter().all(|run| valid(&run.rows).is_empty());
        let stroke = if compared_by_training { Stroke::Smoothed } else { Stroke::Faint };
        let mut series = self.series(stroke, train);
        for series in &mut series {
            series.name.push_str(", training");
        }
        let mut validation = self.series(Stroke::Marked, valid);
        for series in &mut validation {
            series.name.push_str(", validation");
        }
        series.append(&mut validation);
        series
    }

    fn facts_html(&self) -> String {
        if self.facts.is_empty() {
            return String::new();
        }
        let facts: String = self
            .facts
            .iter()
            .map(|(name, value)| {
                format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value))
            })
            .collect();
        format!("<dl class=\"facts\">\n{facts}</dl>\n")
    }

    fn tiles_html(&self) -> String {
        if self.tiles.is_empty() {
            return String::new();
        }
        let tiles: String = self
            .tiles
            .iter()
            .map(|tile| {
                format!(
                    "<div class=\"tile\"><div class=\"label\">{}</div>\
                     <div class=\"value\">{}</div><div class=\"note\">{}</div></div>\n",
                    escape(&tile.label),
                    escape(&tile.value),
                    escape(&tile.note),
                )
            })
            .collect();
        format!("<div class=\"tiles\">\n{tiles}</div>\n")
    }

    /// The runs in a table, where there are several.
    fn comparison_html(&self) -> String {
        if self.runs.len() < 2 {
            return String::new();
        }
        let header =
            ["Run", "Best loss", "Last loss", "Accuracy", "Tokens/s", "Wall time", "Tokens"];
        let rows = self.runs.iter().map(|run| {
            let summary = Summary::of(&run.rows);
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
            let cells = vec![
                run.name.clone(),
                or_dash(summary.best_valid.map(|row| format!("{:.3}", row.loss))),
                or_dash(summary.last_valid.map(|row| format!("{:.3}", row.loss))),
                or_dash(summary.last_valid.map(|row| percent(row.accuracy))),
                speed(&summary),
                or_dash(summary.last_train.map(|row| format_duration(row.elapsed_seconds))),
                or_dash(summary.last_train.map(|row| format_count(row.tokens))),
            ];
            (cells, false)
        });
        section("Comparison", &table(&header, rows))
    }

    fn validation_html(&self) -> String {
        let mut html = String::new();
        for run in &self.runs {
            let best = Summary::of(&run.rows).best_valid;
            if best.is_some() && self.runs.len() > 1 {
                html.push_str(&format!("<h3>{}</h3>\n", escape(&run.name)));
            }
            if best.is_some() {
                let rows = valid_rows(&run.rows).map(|row| {
                    let cells = vec![
                        row.step.to_string(),
                        format!("{:.4}", row.loss),
                        decimal(row.perplexity),
                        percent(row.accuracy),
                        row.tokens.to_string(),
                    ];
                    (cells, best == Some(row))
                });
                let header = ["Step", "Loss", "Perplexity", "Accuracy", "Target tokens"];
                html.push_str(&table(&header, rows));
            }
        }
        html
    }

    /// How the layers with experts routed the last row's tokens.
    fn experts_html(&self) -> String {
        let mut html = String::new();
        for run in &self.runs {
            let Some(last) = train_rows(&run.rows).last().filter(|row| !row.routing.is_empty())
            else {
                continue;
            };
            if self.runs.len() > 1 {
                html.push_str(&format!("<h3>{}</h3>\n", escape(&run.name)));
            }
            let rows = last.routing.iter().map(|layer| {
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
                (cells, false)
            });
            let header = [
                "Layer",
                "Most chosen, × even",
                "Never chosen",
                "Entropy, nats",
                "Dropped",
                "Load balancing",
                "z-loss",
            ];
            html.push_str(&table(&header, rows));
        }
        html
    }

    fn examples_html(&self) -> String {
        self.examples
            .iter()
            .map(|example| {
                format!(
                    "<div class=\"example\"><p>{}</p><p>{}</p></div>\n",
                    with_blanks_marked(&example.prompt),
                    with_written_marked(&example.prompt, &example.filled),
                )
            })
            .collect()
    }

    fn configuration_html(&self) -> String {
        if self.configuration.is_empty() {
            return String::new();
        }
        format!(
            "<details><summary>Configuration</summary><pre>{}</pre></details>\n",
            escape(&self.configuration)
        )
    }
}

/// What a run came to.
struct Summary<'a> {
    last_train: Option<&'a TrainRow>,
    last_valid: Option<&'a ValidRow>,
    best_valid: Option<&'a ValidRow>,
    /// The median: the first row waits for caches and compilers, some rows for the disk.
    tokens_per_second: Option<f64>,
}

impl<'a> Summary<'a> {
    fn of(rows: &'a [MetricsRow]) -> Self {
        let mut speeds: Vec<f64> = train_rows(rows).map(|row| row.tokens_per_second).collect();
        speeds.sort_unstable_by(f64::total_cmp);
        Self {
            last_train: train_rows(rows).last(),
            last_valid: valid_rows(rows).last(),
            best_valid: valid_rows(rows).min_by(|a, b| a.loss.total_cmp(&b.loss)),
            tokens_per_second: speeds.get(speeds.len() / 2).copied(),
        }
    }
}

fn train_rows(rows: &[MetricsRow]) -> impl Iterator<Item = &TrainRow> {
    rows.iter().filter_map(|row| match row {
        MetricsRow::Train(row) => Some(row),
        MetricsRow::Valid(_) | MetricsRow::Rollback(_) => None,
    })
}

fn valid_rows(rows: &[MetricsRow]) -> impl Iterator<Item = &ValidRow> {
    rows.iter().filter_map(|row| match row {
        MetricsRow::Valid(row) => Some(row),
        MetricsRow::Train(_) | MetricsRow::Rollback(_) => None,
    })
}

fn write_file(path: PathBuf, contents: &str) -> Result<(), ReportError> {
    replace_file(&path, contents.as_bytes()).map_err(|source| ReportError::Write { path, source })
}

fn speed(summary: &Summary<'_>) -> String {
    let speed = summary.tokens_per_second;
    speed.map_or_else(|| "–".to_owned(), |speed| format_count(speed.round() as u64))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
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

/// A part of the page with its heading, or nothing where it has no content.
fn section(heading: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{heading}</h2>\n{content}</section>\n")
}

/// A table; each row comes with whether it is the best.
fn table(header: &[&str], rows: impl Iterator<Item = (Vec<String>, bool)>) -> String {
    let header: String = header.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    let rows: String = rows
        .map(|(cells, best)| {
            let cells: String =
                cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
            let class = if best { " class=\"best\"" } else { "" };
            format!("<tr{class}>{cells}</tr>\n")
        })
        .collect();
    format!(
        "<div class=\"table\"><table>\n<thead><tr>{header}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// A prompt with its blanks made visible.
fn with_blanks_marked(text: &str) -> String {
    pieces(text)
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => escape(text),
            Piece::Sentinel(name) => format!("<mark class=\"blank\">{}</mark>", escape(name)),
        })
        .collect()
}

/// The filled text, with what stands in the place of the prompt's sentinels marked. Where it does
/// not follow the prompt, it is shown as it is.
fn with_written_marked(prompt: &str, filled: &str) -> String {
    let mut html = String::new();
    let mut rest = filled;
    let mut in_blank = false;
    let mark = |text: &str, in_blank: bool| match (text.trim(), in_blank) {
        ("", _) | (_, false) => escape(text),
        _ => format!("<mark class=\"written\">{}</mark>", escape(text)),
    };
    for piece in pieces(prompt) {
        match piece {
            Piece::Sentinel(_) => in_blank = true,
            Piece::Text(kept) if kept.trim().is_empty() => {}
            Piece::Text(kept) => {
                // Tokenizers change the spaces at the edges of a blank.
                let kept = kept.trim();
                let Some(at) = rest.find(kept) else {
                    return with_blanks_marked(filled);
                };
                html.push_str(&mark(&rest[..at], in_blank));
                html.push_str(&escape(kept));
                rest = &rest[at + kept.len()..];
                in_blank = false;
            }
        }
    }
    html + &mark(rest, in_blank)
}

/// A stretch of a prompt.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    Sentinel(&'a str),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(Range { start, end }) = first_sentinel(rest) {
        if start > 0 {
            pieces.push(Piece::Text(&rest[..start]));
        }
        pieces.push(Piece::Sentinel(&rest[start..end]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}

/// Where the first `<extra_id_…>` lies.
fn first_sentinel(text: &str) -> Option<Range<usize>> {
    const OPENING: &str = "<extra_id_";
    text.match_indices(OPENING).find_map(|(start, _)| {
        let number = start + OPENING.len();
        let digits = text[number..].bytes().take_while(u8::is_ascii_digit).count();
        let end = number + digits;
        (digits > 0 && text[end..].starts_with('>')).then_some(start..end + 1)
    })
}

/// Text as HTML. Prompts, generated text and names may hold anything.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(final_loss: f64) -> Vec<MetricsRow> {
        let mut rows = Vec::new();
        for step in 1..=100 {
            rows.push(MetricsRow::Train(TrainRow {
                step,
                loss: final_loss + 100.0 / step as f64,
                learning_rate: 1e-3,
                grad_norm: 1.0 / step as f64,
                tokens: 626 * step,
                tokens_per_second: 5000.0,
                elapsed_seconds: 36.0 * step as f64,
                routing: Vec::new(),
                epochs: Vec::new(),
            }));
            if step % 25 == 0 {
                rows.push(MetricsRow::Valid(ValidRow {
                    step,
                    loss: final_loss + if step == 75 { 0.0 } else { 0.25 },
                    perplexity: final_loss.exp(),
                    accuracy: 0.4321,
                    tokens: 1140,
                    sources: Vec::new(),
                    tasks: Vec::new(),
                }));
            }
        }
        rows
    }

    fn report(names: &[&str]) -> Report {
        let runs = names
            .iter()
            .map(|name| RunCurves { name: (*name).to_owned(), rows: rows(3.125) })
            .collect();
        Report {
            title: "altup-s <K=2>".to_owned(),
            runs,
            facts: vec![("Model".to_owned(), "AltUp & K = 2".to_owned())],
            tiles: Tile::summary(&rows(3.125), Some(7.5)),
            examples: vec![GeneratedExample {
                prompt: "Thank you <extra_id_0> me to your party <extra_id_1> week.".to_owned(),
                filled: "Thank you for <b>inviting</b> me to your party last week.".to_owned(),
            }],
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
            "1h 00m",
            "62.6k",
            "<tr class=\"best\"><td>75</td><td>3.1250</td>",
            "title = &quot;&lt;script&gt;&quot;",
        ] {
            assert!(html.contains(text), "{text} is missing");
        }
        let linked = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!linked.contains("http") && !linked.contains("src="));
        let mut charts: Vec<_> = fs::read_dir(folder.path().join("charts"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        charts.sort();
        assert_eq!(
            charts,
            [
                "accuracy.svg",
                "gradient_norm.svg",
                "learning_rate.svg",
                "loss.svg",
                "tokens_per_second.svg"
            ]
        );
    }

    #[test]
    fn several_runs_are_compared() {
        let (_folder, html) = written(&report(&["dense", "altup & co"]));
        assert!(html.contains("<h2>Comparison</h2>"));
        assert!(html.contains("<td>altup &amp; co</td><td>3.125</td><td>3.375</td>"));
        assert!(html.contains("dense, training") && html.contains("dense, validation"));
    }

    #[test]
    fn a_run_that_has_not_begun_can_be_reported() {
        let empty = Report {
            title: "empty".to_owned(),
            runs: vec![RunCurves { name: "empty".to_owned(), rows: Vec::new() }],
            facts: Vec::new(),
            tiles: Tile::summary(&[], None),
            examples: Vec::new(),
            configuration: String::new(),
        };
        let (_folder, html) = written(&empty);
        assert!(html.contains("no data"));
        assert!(!html.contains("<h2>Validation</h2>"));
    }

    #[test]
    fn what_the_model_wrote_is_marked() {
        let report = report(&[]);
        let example = &report.examples[0];
        assert_eq!(
            with_blanks_marked(&example.prompt),
            "Thank you <mark class=\"blank\">&lt;extra_id_0&gt;</mark> me to your party \
             <mark class=\"blank\">&lt;extra_id_1&gt;</mark> week."
        );
        assert_eq!(
            with_written_marked(&example.prompt, &example.filled),
            "Thank you<mark class=\"written\"> for &lt;b&gt;inviting&lt;/b&gt; </mark>me to your \
             party<mark class=\"written\"> last </mark>week."
        );
        assert_eq!(
            with_written_marked(&example.prompt, "<extra_id_0> <i>"),
            "<mark class=\"blank\">&lt;extra_id_0&gt;</mark> &lt;i&gt;",
            "a bare output is shown as it is"
        );
    }

    #[test]
    fn only_numbered_sentinels_are_blanks() {
        assert_eq!(
            pieces("<extra_id_> <extra_id_12><extra_id_3"),
            [
                Piece::Text("<extra_id_> "),
                Piece::Sentinel("<extra_id_12>"),
                Piece::Text("<extra_id_3")
            ]
        );
    }
}
