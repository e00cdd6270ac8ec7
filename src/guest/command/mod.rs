//! The guest of `kite run -- COMMAND`: makes the root folder, starts the command with its streams, and tells kite how it
//! ended.

mod cgroup;
mod child;
mod container;
mod file;
mod names;
mod net;
mod ports;
mod root;
mod storage;
mod streams;
#[cfg(test)]
mod tests;
mod user;

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

use super::{modprobe, network, power};
use crate::spec::container::ContainerSpec;
use crate::spec::frames;
use crate::spec::wire::{End, GuestCommand, Report};
use child::Process;
use ports::{Control, Ports};

/// How long kite may take to end the machine once it knows how the command ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// From the start of the command on, the kernel shows all it has to say but debugging.
const LOG_LEVEL: &str = "7";
/// Memory, in which programs have their sockets.
const RUN: &str = "/run";

/// Runs the command and ends the machine.
///
/// # Errors
/// kite cannot be told.
pub fn run(spec: &[u8]) -> anyhow::Result<Infallible> {
    let spec: GuestCommand = serde_json::from_slice(spec).context("cannot read the command")?;
    let ports = Ports::open()?;
    let control = ports.control.clone();
    let end = carry_out(&spec, ports).unwrap_or_else(|error| End::Failed(format!("{error:#}")));
    control.tell(&Report::Ended(end));
    sleep(PATIENCE);
    power::off()
}

fn carry_out(spec: &GuestCommand, ports: Ports) -> anyhow::Result<End> {
    if let Some(container) = &spec.container {
        return run_container(spec, container, ports);
    }
    root::enter(spec)?;
    // Without modules there is nothing to offer.
    let _ = modprobe::offer();
    // Neither is worth failing for: a kernel without networking has no loopback either.
    let _ = net::bring_up_loopback();
    connect(spec, &ports.control);
    let _ = fs::write("/proc/sys/kernel/printk", LOG_LEVEL);
    let mut process = Process::of(spec)?;
    // What needs it says so.
    let _ = process.user.make_runtime_folder(process.variable("XDG_RUNTIME_DIR"), Path::new(RUN));
    // Without cgroups the command is in none.
    process.group = cgroup::delegate(&process.user).unwrap_or_default();
    if spec.root.is_in_memory()
        && let Err(error) = storage::mount_memory(&process.user, process.home())
    {
        let why = "containers in the guest have no file system of their own: cannot mount one";
        ports.control.tell(&Report::Lacks(format!("{why}: {error}")));
    }
    let end = child::run(spec, process, ports);
    root::leave(spec);
    end
}

/// The same for a container, whose document says what it mounts and what its names are.
fn run_container(spec: &GuestCommand, container: &ContainerSpec, ports: Ports) -> anyhow::Result<End> {
    let processes = ports::open(frames::PORT)?;
    container::enter(spec, container)?;
    let _ = net::bring_up_loopback();
    if !spec.networks.is_empty() {
        let known = network::set_up(&spec.networks);
        known.lacks.into_iter().for_each(|what| ports.control.tell(&Report::Lacks(what)));
    }
    let _ = fs::write("/proc/sys/kernel/printk", LOG_LEVEL);
    container::run(spec, container, ports, processes)
}

/// Sets up the guest's networks, and its names. What cannot be is said, and the command goes without it.
fn connect(spec: &GuestCommand, control: &Control) {
    let lacks = |what| control.tell(&Report::Lacks(what));
    if let Err(error) = names::add_own(&spec.root, root::HOST_NAME) {
        lacks(format!("the guest does not know its own name: cannot write /etc/hosts in it: {error}"));
    }
    if let Err(error) = names::complete_image(&spec.root, root::HOST_NAME) {
        lacks(format!(
            "the image lacks names: cannot write /etc/hostname and /etc/resolv.conf in it: {error}"
        ));
    }
    if spec.networks.is_empty() {
        return;
    }
    let known = network::set_up(&spec.networks);
    if let Err(error) = names::set_resolvers(&spec.root, &known) {
        lacks(format!("the guest has no resolvers: cannot write /etc/resolv.conf in it: {error}"));
    }
    known.lacks.into_iter().for_each(lacks);
}

/// Something both threads and the main program tell kite.
type Shared = Arc<Control>;
