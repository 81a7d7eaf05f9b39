use altup_train::metrics::MetricsLog;
use altup_train::report::{Report, RunCurves};
use altup_train::run_folder::RunFolder;
use clap::Args;
use std::path::PathBuf;

use super::{OverwriteArgs, output};

/// Draw the curves of several runs over each other: report.html and SVG files
#[derive(Args)]
pub(super) struct ReportArgs {
    /// The folders of the runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where the report goes
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The report's title
    #[arg(long, default_value = "Comparison of runs")]
    title: String,
    #[command(flatten)]
    overwrite: OverwriteArgs,
}

pub(super) fn run(args: ReportArgs) -> anyhow::Result<()> {
    args.overwrite.check(&args.output.join("report.html"))?;
    let mut curves = Vec::new();
    let mut facts = Vec::new();
    let mut configurations = String::new();
    for path in &args.runs {
        let (folder, config) = RunFolder::open(path)?;
        let name = path
            .file_name()
            .map_or_else(|| config.name(), |name| name.to_string_lossy().into_owned());
        facts.push((name.clone(), format!("{}, {}", config.name(), config.optimization())));
        configurations.push_str(&format!("# {name}\n{}\n", config.to_toml()));
        curves.push(RunCurves { name, rows: MetricsLog::read(&folder.metrics())? });
    }
    let report = Report {
        title: args.title,
        runs: curves,
        facts,
        tiles: Vec::new(),
        examples: Vec::new(),
        configuration: configurations,
    };
    report.write(&args.output)?;
    Ok(output::line(&args.output.join("report.html").display().to_string())?)
}
