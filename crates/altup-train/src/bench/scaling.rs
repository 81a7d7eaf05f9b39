//! How the cost of a work grows with the number of blocks, the width, the lengths, the vocabulary and the
//! batch, one at a time, beside how its arithmetic grows.

use serde::Serialize;
use std::fmt::Write;

use super::Work;
use super::comparison::{Comparison, Plan, Side};

/// One quantity, and a comparison at each of its values.
#[derive(Clone, Debug, Serialize)]
pub struct Axis {
    /// The quantity.
    pub name: &'static str,
    /// Its values, ascending, with what was measured there.
    pub points: Vec<Point>,
}

/// A value of a quantity.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// The value, as a number.
    pub value: usize,
    /// All models on all sides at this value.
    pub comparison: Comparison,
}

/// Measures `plan` with one quantity changed at a time. The size must be one; its models are compared at
/// each value, but for the number of blocks, which replaces them.
///
/// # Errors
///
/// As [`Plan::run`].
pub fn run(
    plan: &Plan,
    sides: &[Side],
    commit: Option<String>,
    note: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Axis>> {
    let [size] = plan.sizes.as_slice() else {
        anyhow::bail!("scaling is measured from one size. Got {}", plan.sizes.join(", "));
    };
    let base = super::models::model(size, "dense");
    let base = base.ok_or_else(|| anyhow::anyhow!("there is no size {size:?}"))?;
    let vocab_size = plan.vocab_size.unwrap_or(base.vocab_size);
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut changed = plan.clone();
        change(&mut changed);
        changed
    };
    let scaled = |length: usize, factor: usize| (length * factor / 4).max(1);
    let axes: [(&'static str, Vec<(usize, Plan)>); 5] = [
        (
            "blocks K",
            [1, 2, 4, 8]
                .map(|k| (k, with(&|plan| plan.models = vec![format!("altup-k{k}")])))
                .into(),
        ),
        (
            "width d",
            [(1, ""), (2, "-wide2"), (4, "-wide4")]
                .map(|(factor, wide)| {
                    let sizes = vec![format!("{size}{wide}")];
                    (factor * base.d_model, with(&|plan| plan.sizes = sizes.clone()))
                })
                .into(),
        ),
        (
            "input tokens T",
            [1, 2, 4, 8]
                .map(|factor| {
                    let lengths = [plan.input_length, plan.target_length];
                    let [inputs, targets] = lengths.map(|length| scaled(length, factor));
                    let change = |plan: &mut Plan| {
                        (plan.input_length, plan.target_length) = (inputs, targets);
                    };
                    (inputs, with(&change))
                })
                .into(),
        ),
        (
            "vocabulary V",
            [1, 2, 4]
                .map(|factor| {
                    let size = scaled(vocab_size, factor);
                    (size, with(&|plan| plan.vocab_size = Some(size)))
                })
                .into(),
        ),
        (
            "rows of a batch",
            [1, 2, 4, 8]
                .map(|factor| {
                    let rows = scaled(plan.batch_size, factor);
                    (rows, with(&|plan| plan.batch_size = rows))
                })
                .into(),
        ),
    ];
    let mut measure = |(name, plans): (&'static str, Vec<(usize, Plan)>)| {
        let points = plans.into_iter().map(|(value, plan)| {
            note(&format!("{name} = {value}"));
            let comparison = plan.run(sides, commit.clone(), &mut |_| ())?;
            Ok(Point { value, comparison })
        });
        Ok(Axis { name, points: points.collect::<anyhow::Result<_>>()? })
    };
    axes.into_iter().map(&mut measure).collect()
}

/// Markdown: how it was measured, then a table for each quantity and work.
pub fn markdown(plan: &Plan, axes: &[Axis]) -> String {
    let mut text = String::new();
    let Some(first) = axes.first().and_then(|axis| axis.points.first()) else { return text };
    let machine = &first.comparison.machine;
    let commit = first.comparison.commit.as_ref();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{}, {} cores, {}. From {}, {} × {} input and {} target tokens, {}, seed {}: one quantity changes at a \
         time. Medians of {} × {}.{}",
        machine.cpu,
        machine.cores,
        machine.system,
        plan.sizes.join(", "),
        plan.batch_size,
        plan.input_length,
        plan.target_length,
        plan.precision.name(),
        plan.seed,
        plan.rounds,
        plan.repeats,
        commit.map(|commit| format!(" Commit {commit}.")).unwrap_or_default(),
    );
    for &work in plan.works.iter().filter(|&&work| work != Work::Breakdown) {
        for axis in axes {
            write_table(&mut text, axis, work);
        }
    }
    text
}

fn write_table(text: &mut String, axis: &Axis, work: Work) {
    let _ = writeln!(
        text,
        "\n### {}, {}\n\n| {} | model | side | ms | to the first | its arithmetic | peak GB |\n\
         |---|---|---|---|---|---|---|",
        axis.name,
        work.name(),
        axis.name,
    );
    let Some(first) = axis.points.first() else { return };
    for Point { value, comparison } in &axis.points {
        for (entry, base) in comparison.entries.iter().zip(&first.comparison.entries) {
            let peak = entry.measured.measurements.get(&work).and_then(|t| t.peak_bytes);
            let _ = writeln!(
                text,
                "| {value} | {} | {} | {:.1} | {:.2} | {:.2} | {} |",
                entry.model,
                entry.side,
                1e3 * entry.median(work),
                entry.median(work) / base.median(work),
                entry.floors[&work] / base.floors[&work],
                peak.map_or(String::new(), |bytes| format!("{:.2}", bytes as f64 / 1e9)),
            );
        }
    }
}
