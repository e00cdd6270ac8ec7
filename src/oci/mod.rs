//! An OCI runtime (OCI runtime-spec 1.2): containers of podman, Docker and containerd, each in a machine of its own.
//!
//! A container's monitor is the process that engines know; it starts the machine and ends as the container does. All other
//! commands of the runtime ask it, over a socket in the container's folder.

pub mod config;
mod console;
mod convert;
mod create;
mod exec;
mod group;
mod hooks;
pub mod log;
mod monitor;
mod network;
mod protocol;
mod resources;
mod run;
mod runtime;
pub mod state;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

pub use create::{Options as CreateOptions, create, write_pid};
pub use exec::{Words, carry, detached, join, process, status};
pub use monitor::{Options as MonitorOptions, run as monitor};
pub use run::run;
pub use runtime::{Ask, ask, delete, features, leave_failure, machine, signal_number, start};

/// This program as another process of the runtime, without its command.
fn this_program(root: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kite").args(["oci", "--root"]).arg(root);
    command
}
