//! How a download is shown: a bar for each file, on a terminal.

use altup_models::DownloadProgress;
use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{msg} {bar:24.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";

/// The bar of the file that is being downloaded. Elsewhere than on a terminal nothing is shown.
#[derive(Default)]
pub(super) struct DownloadBars {
    current: Option<(String, ProgressBar)>,
}

impl DownloadBars {
    pub(super) fn show(&mut self, progress: DownloadProgress<'_>) {
        let is_current = |(file, _): &(String, _)| file == progress.file;
        if !self.current.as_ref().is_some_and(is_current) {
            let bar = ProgressBar::new(progress.size).with_message(progress.file.to_owned());
            let style = ProgressStyle::with_template(TEMPLATE);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.current = Some((progress.file.to_owned(), bar));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(progress.received);
            if progress.received == progress.size {
                bar.finish();
            }
        }
    }
}
