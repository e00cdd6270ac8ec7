//! The programs that are compared, and how each is told to boot something.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

/// The guest's RAM in bytes: kite's default.
pub const RAM: u64 = 512 << 20;
/// QEMU's name.
pub const QEMU: &str = "qemu-system-x86_64";

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
        let mut command = Command::new(QEMU);
        command.args(["-M", "microvm,accel=kvm,auto-kernel-cmdline=off", "-m", &(RAM >> 20).to_string()]);
        // IA32_ARCH_CAPABILITIES is an MSR that PVM refuses to be set.
        command.args(["-cpu", "host,arch-capabilities=off"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        command.arg("-kernel").arg(kernel);
        command
    }
}
