//! QEMU's command lines. Each describes a machine with nothing but what is named: no default devices, no display, no
//! settings of the user's.

use std::process::Command;

/// QEMU's program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// What kite puts on a kernel's command line by itself.
pub const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t pci=off";
/// What every machine here lacks.
pub const NOTHING_ELSE: [&str; 5] = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"];

/// A microvm machine on KVM with `memory` MiB of RAM, and a serial port on standard input and output.
pub fn microvm(memory: u64) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(NOTHING_ELSE).args(["-M", "microvm,accel=kvm,auto-kernel-cmdline=off"]);
    // IA32_ARCH_CAPABILITIES is an MSR that PVM refuses to set.
    command.args(["-cpu", "host,arch-capabilities=off", "-serial", "stdio", "-m", &memory.to_string()]);
    command
}
