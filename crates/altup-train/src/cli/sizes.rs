use altup_models::{num_parameters, size, size_names};
use altup_train::device;
use altup_train::progress::format_count;
use clap::Args;

use super::output;

/// List the named model sizes
#[derive(Args)]
pub(super) struct SizesArgs {}

pub(super) fn run(_args: SizesArgs) -> anyhow::Result<()> {
    output::line("name             layers  d_model  heads  d_kv   d_ff  parameters")?;
    for name in size_names() {
        let Some(config) = size(name) else { continue };
        output::line(&format!(
            "{name:<15}  {:>3}+{:<3} {:>7} {:>6} {:>5} {:>6} {:>11}",
            config.num_layers,
            config.decoder_layers(),
            config.d_model,
            config.num_heads,
            config.d_kv,
            config.d_ff,
            format_count(num_parameters(&config.build(&device::cpu())) as u64),
        ))?;
    }
    output::line("NAME-wide2 and NAME-wide4 are twice and four times as wide.")?;
    Ok(())
}
