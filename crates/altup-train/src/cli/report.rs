use altup_train::report::write_comparison;
use altup_train::run_folder::RunFolder;
use altup_train::views::Views;
use clap::Args;
use std::path::PathBuf;

use super::{OverwriteArgs, output};

/// Write the report of a run, or of several with their curves over each other: report.html and SVG files
///
/// Of one run without --output, its own folder gets them, and TensorBoard's event files.
#[derive(Args)]
pub(super) struct ReportArgs {
    /// The folders of the runs, finished or not
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where the report that compares the runs goes [default: of one run, its own folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The title of the report that compares the runs
    #[arg(long, default_value = "Comparison of runs", requires = "output")]
    title: String,
    #[command(flatten)]
    overwrite: OverwriteArgs,
}

pub(super) fn run(args: ReportArgs) -> anyhow::Result<()> {
    let folder = match (&args.output, &args.runs[..]) {
        (Some(output), runs) => {
            for name in ["report.html", "charts"] {
                args.overwrite.check(&output.join(name))?;
            }
            write_comparison(runs, &args.title, output)?;
            output
        }
        (None, [run]) => {
            Views::new(RunFolder::find(run)?).write()?;
            run
        }
        (None, _) => {
            anyhow::bail!("a report of several runs needs --output, the folder that it goes to")
        }
    };
    Ok(output::line(&folder.join("report.html").display().to_string())?)
}
