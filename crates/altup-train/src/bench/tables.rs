//! The tables and charts of a comparison.

use std::fmt::Write;

use super::comparison::{Comparison, Entry};
use super::counted::{Counted, PartCount};
use super::traffic::PartTraffic;
use super::{Part, Work};
use crate::chart::{Bar, BarChart, Group};
use crate::statistics::median;

impl Comparison {
    /// Markdown: how it was measured, then a table for each size and work.
    pub fn markdown(&self) -> String {
        let plan = &self.plan;
        let mut text = String::new();
        let machine = &self.machine;
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "{}, {} cores, {}. Batches of {} × {} input and {} target tokens, {} decoded, {}, seed {}. \
             {} rounds in which the sides take turns, each with one run to warm up and {} timed; times are \
             medians, with the fastest and the slowest.{}\n",
            machine.cpu,
            machine.cores,
            machine.system,
            plan.batch_size,
            plan.input_length,
            plan.target_length,
            plan.new_tokens,
            plan.precision.name(),
            plan.seed,
            plan.rounds,
            plan.repeats,
            self.commit.as_ref().map(|commit| format!(" Commit {commit}.")).unwrap_or_default(),
        );
        let mut programs: Vec<String> = Vec::new();
        for Entry { side, measured, .. } in &self.entries {
            let threads = measured.threads.map(|n| format!(", {n} threads")).unwrap_or_default();
            let program = format!("- {side}: {} on {}{threads}", measured.program, measured.device);
            if !programs.contains(&program) {
                programs.push(program);
            }
        }
        let _ = writeln!(text, "{}", programs.join("\n"));
        for size in &plan.sizes {
            for &work in &plan.works {
                match work {
                    Work::Breakdown => {
                        self.write_breakdown(&mut text, size);
                        self.write_counts(&mut text, size);
                    }
                    work => self.write_table(&mut text, size, work),
                }
            }
        }
        if !self.left_out.is_empty() {
            text.push_str("\nLeft out:\n\n");
            for left_out in &self.left_out {
                let (size, model, reason) = (&left_out.size, &left_out.model, &left_out.reason);
                let _ = writeln!(text, "- {size} {model}: {reason}");
            }
        }
        text
    }

    fn write_table(&self, text: &mut String, size: &str, work: Work) {
        let (rate, dense) = (rate_unit(work), &self.plan.models[0]);
        let _ = writeln!(
            text,
            "\n### {size}, {}\n\n| model | side | ms | tokens/s | {rate} | peak GB | to {dense} | floor | to the \
             first side |\n|---|---|---|---|---|---|---|---|---|",
            work.name()
        );
        for model in &self.plan.models {
            for entry in self.of(size, model) {
                let Some(timing) = entry.measured.measurements.get(&work) else { continue };
                let seconds = median(&timing.seconds);
                let (fastest, slowest) = timing
                    .seconds
                    .iter()
                    .fold((f64::INFINITY, 0f64), |(low, high), &s| (low.min(s), high.max(s)));
                let peak = timing
                    .peak_bytes
                    .map_or("".into(), |bytes| format!("{:.2}", bytes as f64 / 1e9));
                let to_dense = self
                    .entry(size, dense, &entry.side)
                    .map_or(String::new(), |dense| format!("{:.3}", seconds / dense.median(work)));
                let floor = self.entry(size, dense, &entry.side).map_or(String::new(), |dense| {
                    format!("{:.3}", entry.floors[&work] / dense.floors[&work])
                });
                let to_first = self
                    .of(size, model)
                    .next()
                    .map_or(String::new(), |first| format!("{:.2}", seconds / first.median(work)));
                let _ = writeln!(
                    text,
                    "| {model} | {} | {:.1} ({:.1} to {:.1}) | {:.0} | {:.1} | {peak} | {to_dense} | {floor} | \
                     {to_first} |",
                    entry.side,
                    1e3 * seconds,
                    1e3 * fastest,
                    1e3 * slowest,
                    self.tokens(work) / seconds,
                    entry.floors[&work] / seconds / 1e9,
                );
            }
        }
    }

    /// What the parts of a training step take alone, and their shares of the step where it was timed too.
    fn write_breakdown(&self, text: &mut String, size: &str) {
        let _ = write!(text, "\n### {size}, parts of a training step, ms\n\n| model | side |");
        for part in Part::ALL {
            let _ = write!(text, " {} |", part.name());
        }
        let _ = writeln!(text, " all parts | step |\n|{}", "---|".repeat(Part::ALL.len() + 4));
        for entry in self.entries.iter().filter(|entry| entry.size == size) {
            let of_part = |part: &Part| entry.measured.parts.get(part).map_or(0.0, |s| median(s));
            let sum: f64 = Part::ALL.iter().map(of_part).sum();
            let step = entry.median(Work::Train);
            let whole = if step.is_finite() { step } else { sum };
            let _ = write!(text, "| {} | {} |", entry.model, entry.side);
            for seconds in Part::ALL.iter().map(of_part).chain([sum]) {
                let _ = write!(text, " {:.1} ({:.0} %) |", 1e3 * seconds, 100.0 * seconds / whole);
            }
            let step = if step.is_finite() { format!("{:.1}", 1e3 * step) } else { String::new() };
            let _ = writeln!(text, " {step} |");
        }
    }

    /// What the parts of a training step launch and move, on the sides that count it.
    fn write_counts(&self, text: &mut String, size: &str) {
        let counted = |entry: &&Entry| entry.size == size && entry.measured.counted.is_some();
        let mut entries = self.entries.iter().filter(counted).peekable();
        if entries.peek().is_none() {
            return;
        }
        let _ = writeln!(
            text,
            "\n### {size}, kernels and memory traffic of a training step\n\nMB by arithmetic, read + written: by the \
             kernels as they are, and at the least.\n\n\
             | model | side | part | kernels | MB | least | times the least |\n|---|---|---|---|---|---|---|"
        );
        for entry in entries {
            let Some(Counted { parts, step_kernels }) = &entry.measured.counted else { continue };
            let names = format!("| {} | {} |", entry.model, entry.side);
            for (part, PartCount { kernels, traffic }) in parts {
                let _ = write!(text, "{names} {} | {kernels} |", part.name());
                let _ = match traffic {
                    Some(PartTraffic { moved, least }) => writeln!(
                        text,
                        " {} | {} | {} |",
                        moved.megabytes(),
                        least.megabytes(),
                        times(moved.total(), least.total()),
                    ),
                    None => writeln!(text, " | | |"),
                };
            }
            let of_parts: usize = parts.values().map(|part| part.kernels).sum();
            let rest = step_kernels.saturating_sub(of_parts);
            let _ = writeln!(text, "{names} all else | {rest} | | | |");
            let _ = writeln!(text, "{names} **step** | **{step_kernels}** | | | |");
        }
    }

    /// A chart for each size and work, with the name of its file: the median of every model on every side, and
    /// the lowest and highest of the repeats.
    pub fn charts(&self) -> Vec<(String, String)> {
        let mut charts = Vec::new();
        for size in &self.plan.sizes {
            for &work in self.plan.works.iter().filter(|&&work| work != Work::Breakdown) {
                let bar = |entry: &Entry| Bar {
                    name: entry.side.clone(),
                    value: 1e3 * entry.median(work),
                    range: entry.extremes(work).map(|(low, high)| (1e3 * low, 1e3 * high)),
                };
                let group = |model: &String| Group {
                    name: model.clone(),
                    bars: self
                        .of(size, model)
                        .map(bar)
                        .filter(|bar| bar.value.is_finite())
                        .collect(),
                };
                let chart = BarChart {
                    title: format!(
                        "{size}, {}: ms, less is better (median, and lowest to highest)",
                        work.name()
                    ),
                    groups: self.plan.models.iter().map(group).collect(),
                };
                charts.push((format!("{size}-{}.svg", work.name()), chart.svg()));
            }
        }
        charts
    }

    fn of<'a>(&'a self, size: &'a str, model: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.size == size && entry.model == model)
    }

    fn entry(&self, size: &str, model: &str, side: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.size == size && e.model == model && e.side == side)
    }

    /// The tokens that a work reads or makes.
    fn tokens(&self, work: Work) -> f64 {
        let plan = &self.plan;
        let per_row = match work {
            Work::Forward | Work::Train | Work::Breakdown => plan.input_length + plan.target_length,
            Work::Prefill => plan.input_length,
            Work::Decode => plan.new_tokens.saturating_sub(1),
        };
        (plan.batch_size * per_row) as f64
    }
}

impl Entry {
    /// The median time of a work in seconds, NaN if it was not timed.
    pub fn median(&self, work: Work) -> f64 {
        self.measured.measurements.get(&work).map_or(f64::NAN, |timing| median(&timing.seconds))
    }

    /// The shortest and the longest time of a work, in seconds.
    fn extremes(&self, work: Work) -> Option<(f64, f64)> {
        let seconds = &self.measured.measurements.get(&work)?.seconds;
        let shortest = seconds.iter().copied().min_by(f64::total_cmp)?;
        let longest = seconds.iter().copied().max_by(f64::total_cmp)?;
        Some((shortest, longest))
    }
}

/// A ratio; none of nothing.
fn times(moved: u64, least: u64) -> String {
    if least == 0 { String::new() } else { format!("{:.2}", moved as f64 / least as f64) }
}

/// What the floor of a work counts, in a second.
fn rate_unit(work: Work) -> &'static str {
    match work {
        Work::Decode => "GB/s of weights",
        Work::Forward | Work::Train | Work::Prefill | Work::Breakdown => "GFLOP/s",
    }
}
