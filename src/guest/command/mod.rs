//! The guest of `kite run -- COMMAND`: makes the root folder, starts the command with its streams, and tells kite how it
//! ended.

mod child;
mod net;
mod ports;
mod root;
mod streams;
mod user;

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

use super::power;
use crate::task::{End, Report, Task};
use ports::{Control, Ports};

/// How long kite may take to end the machine once it knows how the command ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// From the start of the command on, the kernel shows all it has to say but debugging.
const LOG_LEVEL: &str = "7";

/// Does the task and ends the machine.
///
/// # Errors
/// kite cannot be told.
pub fn run(task: &[u8]) -> anyhow::Result<Infallible> {
    let task: Task = serde_json::from_slice(task).context("cannot read the task")?;
    let ports = Ports::open()?;
    let control = ports.control.clone();
    let end = carry_out(&task, ports).unwrap_or_else(|error| End::Failed(format!("{error:#}")));
    control.tell(&Report::Ended(end));
    sleep(PATIENCE);
    power::off()
}

fn carry_out(task: &Task, ports: Ports) -> anyhow::Result<End> {
    root::enter(task)?;
    // Neither is worth failing for: a kernel without networking has no loopback either.
    let _ = net::bring_up_loopback();
    let _ = fs::write("/proc/sys/kernel/printk", LOG_LEVEL);
    let end = child::run(task, ports);
    root::leave(task);
    end
}

/// Something both threads and the main program tell kite.
type Shared = Arc<Control>;
