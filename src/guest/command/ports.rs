//! The ports to kite, found by their names (virtio 1.2 §5.3.6).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Shared;
use crate::host::lock::lock;
use crate::spec::wire::{self, CONTROL, NO_PORT, Output, Report, STDIN};

/// Where Linux lists the ports.
const LIST: &str = "/sys/class/virtio-ports";
/// How long the driver may take to make them.
const PATIENCE: Duration = Duration::from_secs(10);

/// All of them, open.
pub(super) struct Ports {
    pub control: Shared,
    /// What is read are kite's orders.
    pub orders: File,
    pub stdin: File,
    pub outputs: [File; 2],
}

impl Ports {
    /// Waits until they are there and opens them.
    ///
    /// # Errors
    /// The kernel has no driver for them, or they do not come.
    pub fn open() -> anyhow::Result<Self> {
        let orders = open(CONTROL)?;
        let control = Control::new(orders.try_clone().context("cannot share a port")?);
        let [stdout, stderr] = Output::ALL.map(|output| open(output.port()));
        Ok(Self { control: Arc::new(control), orders, stdin: open(STDIN)?, outputs: [stdout?, stderr?] })
    }
}

/// Waits until a port is there and opens it.
///
/// # Errors
/// The kernel has no driver for it, or it does not come.
pub(super) fn open(name: &str) -> anyhow::Result<File> {
    let start = Instant::now();
    loop {
        if let Some(device) = find(name) {
            let opened = File::options().read(true).write(true).open(Path::new("/dev").join(&device));
            return opened.with_context(|| format!("cannot open {device:?}"));
        }
        if start.elapsed() > PATIENCE {
            bail!("{NO_PORT}{name}: the kernel needs CONFIG_VIRTIO_CONSOLE and CONFIG_VIRTIO_MMIO");
        }
        sleep(Duration::from_micros(200));
    }
}

fn find(name: &str) -> Option<std::ffi::OsString> {
    fs::read_dir(LIST)
        .ok()?
        .filter_map(Result::ok)
        .find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim_end() == name))
        .map(|port| port.file_name())
}

/// The port for reports to kite.
pub(super) struct Control {
    port: Mutex<File>,
}

impl Control {
    /// At this port.
    pub fn new(port: File) -> Self {
        Self { port: Mutex::new(port) }
    }

    /// Sends kite a report. A kite that no longer listens does not get it.
    pub fn tell(&self, report: &Report) {
        let _: io::Result<()> = lock(&self.port).write_all(&wire::encode(report));
    }
}
