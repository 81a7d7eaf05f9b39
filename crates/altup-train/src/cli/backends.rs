//! `altup backends`, and how a device is tried before it is used.
//!
//! A graphics driver can end the process that calls it. So a device that has one is first tried in a
//! process of its own, this program with the hidden option `--probe`: what goes wrong there is told in
//! one line here.

use altup_train::device::{Backend, DeviceName, hardware_name};
use anyhow::{Context, anyhow, bail, ensure};
use burn::tensor::{DType, Device, Tensor};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::process::{Command, ExitStatus, Output, Stdio};

use super::output;

/// List the backends: which are compiled in, their devices on this machine, and what is missing
#[derive(Args)]
pub(super) struct BackendsArgs {
    /// Print one JSON object a backend
    #[arg(long)]
    json: bool,
    /// Try one device in this process and print what was found
    #[arg(long, hide = true, value_name = "BACKEND")]
    probe: Option<DeviceName>,
}

/// Begins the error of a try, among what a driver may print.
const FAILED: &str = "failed: ";

/// A device that computes.
#[derive(Serialize, Deserialize)]
struct Found {
    /// All devices of the backend, by name.
    names: Vec<String>,
    /// What the device tried calls itself.
    hardware: Option<String>,
    /// Whether it computes in bf16.
    bf16: bool,
}

#[derive(Serialize)]
struct Listed {
    backend: &'static str,
    compiled: bool,
    devices: Vec<ListedDevice>,
    /// Why there is no device, and how to get one.
    missing: Option<String>,
}

#[derive(Serialize)]
struct ListedDevice {
    name: String,
    hardware: Option<String>,
    bf16: bool,
}

pub(super) fn run(args: BackendsArgs) -> anyhow::Result<()> {
    if let Some(name) = args.probe {
        std::panic::set_hook(Box::new(|panic| {
            output::error(&anyhow!("{FAILED}{}", panic.payload_as_str().unwrap_or("a panic")));
        }));
        let found = try_here(&name).map_err(|error| anyhow!("{FAILED}{error:#}"))?;
        return Ok(output::json(&found)?);
    }
    let backends: Vec<Listed> = Backend::ALL.into_iter().map(list).collect();
    if args.json {
        return backends.iter().try_for_each(|backend| Ok(output::json(backend)?));
    }
    for Listed { backend, devices, missing, .. } in backends {
        for ListedDevice { name, hardware, bf16 } in devices {
            let precision = if bf16 { "f32, bf16" } else { "f32" };
            let hardware = hardware.unwrap_or_else(|| "the CPU".into());
            output::line(&format!("{name:<9} {precision:<10} {hardware}"))?;
        }
        if let Some(missing) = missing {
            output::line(&format!("{backend:<9} {:<10} {missing}", "-"))?;
        }
    }
    Ok(())
}

fn list(backend: Backend) -> Listed {
    let mut listed = Listed {
        backend: backend.name(),
        compiled: backend.is_compiled(),
        devices: Vec::new(),
        missing: None,
    };
    let needs = backend.needs();
    if !listed.compiled {
        listed.missing =
            Some(format!("not compiled in: build with `--features {}`. {needs}", backend.name()));
        return listed;
    }
    let tried = try_apart(&backend.into()).and_then(|found| {
        if let [name] = found.names.as_slice() {
            let name = name.clone();
            return Ok(vec![ListedDevice { name, hardware: found.hardware, bf16: found.bf16 }]);
        }
        let device = |name: String| {
            let Found { hardware, bf16, .. } = try_apart(&name.parse()?)?;
            Ok(ListedDevice { name, hardware, bf16 })
        };
        found.names.into_iter().map(device).collect()
    });
    match tried {
        Ok(devices) => listed.devices = devices,
        Err(error) => listed.missing = Some(format!("{error:#}")),
    }
    listed
}

/// Opens a device; one with a driver only after it has computed something in a process of its own.
///
/// # Errors
///
/// If it is not compiled in, not there, or does not compute.
pub(super) fn open(name: &DeviceName) -> anyhow::Result<Device> {
    if name.backend().has_driver() && name.backend().is_compiled() {
        try_apart(name)?;
    }
    Ok(name.open()?)
}

/// Tries a device in a process of its own.
fn try_apart(name: &DeviceName) -> anyhow::Result<Found> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let tried = Command::new(program)
        .args(["backends", "--probe", &name.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start this program once more")?;
    if tried.status.success() {
        let found = String::from_utf8_lossy(&tried.stdout);
        // A driver may print to standard output too.
        let json = found.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        return serde_json::from_str(json).with_context(|| format!("{name} answered {found:?}"));
    }
    let reason = failure(&tried);
    let needs = name.backend().needs();
    if reason.ends_with(needs) {
        bail!("{reason}");
    }
    bail!("{name} does not run on this machine: {reason}. {needs}")
}

/// Why a try failed, in one line: the first error it printed, or how its process ended.
fn failure(tried: &Output) -> String {
    let errors = String::from_utf8_lossy(&tried.stderr);
    let printed =
        errors.lines().find_map(|line| line.strip_prefix("error: ")?.strip_prefix(FAILED));
    match (printed, ending(tried.status)) {
        (_, Some(signal)) => signal,
        (Some(error), None) => error.trim_end_matches('.').to_owned(),
        (None, None) => errors.lines().last().unwrap_or("no reason given").to_owned(),
    }
}

/// The signal that ended a process.
fn ending(status: ExitStatus) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        let signal = status.signal()?;
        let name = match signal {
            4 => " (illegal instruction)",
            6 => " (abort)",
            9 => " (killed)",
            11 => " (segmentation fault)",
            _ => "",
        };
        Some(format!("its driver ended the process with signal {signal}{name}"))
    }
    #[cfg(not(unix))]
    (!status.success() && status.code().is_none()).then(|| "its process was ended".into())
}

/// Opens a device in this process and lets it compute.
fn try_here(name: &DeviceName) -> anyhow::Result<Found> {
    let device = name.open()?;
    // A product of matrices would be tuned first, for seconds.
    let ones = Tensor::<1>::ones([3], &device);
    let sum: Vec<f32> = (ones.clone() + ones).into_data().iter().collect();
    ensure!(sum == [2.0; 3], "{name} computes wrongly: 1 + 1 gave {sum:?}");
    Ok(Found {
        names: name.backend().devices().iter().map(ToString::to_string).collect(),
        hardware: hardware_name(&device),
        bf16: device.supports_dtype(DType::BF16),
    })
}
