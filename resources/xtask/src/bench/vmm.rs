//! The programs that are compared, and how each is told to boot something.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::qemu;

/// The guest's RAM in bytes: kite's default.
pub const RAM: u64 = 512 << 20;

/// Where the programs built here are.
#[derive(Args, Clone, Debug)]
pub struct Programs {
    #[arg(long)]
    pub kite: PathBuf,
    #[arg(long)]
    pub bare: PathBuf,
}

impl Programs {
    /// As this program's own arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        vec!["--kite".into(), self.kite.clone().into(), "--bare".into(), self.bare.clone().into()]
    }

    /// kite; on a KVM that it would refuse to boot Linux on, too, as these guests' first instruction runs anywhere.
    pub fn kite(&self, kernel: &Path) -> Command {
        let mut command = Command::new(&self.kite);
        command.args(["run", "--force", "--kernel"]).arg(kernel);
        command
    }

    /// The least that runs a guest.
    pub fn bare(&self, kernel: &Path) -> Command {
        let mut command = Command::new(&self.bare);
        command.arg(kernel).arg(RAM.to_string());
        command
    }

    /// QEMU's microvm machine with a serial port and nothing else.
    pub fn qemu(&self, kernel: &Path) -> Command {
        let mut command = qemu::microvm(RAM >> 20);
        command.arg("-kernel").arg(kernel);
        command
    }
}
