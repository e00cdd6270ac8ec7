//! Ending the machine from inside: power-off and reset (reboot(2), ACPI 6.5 §4.8.3.7).
#![expect(unsafe_code, reason = "writes the power register's port where Linux cannot")]

use std::convert::Infallible;
use std::path::Path;

use anyhow::Context;
use boot::layout::POWER_PORT;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

/// Sleep control: enter (SLP_EN, bit 5) the state S5 (SLP_TYP, bits 2 to 4).
const ENTER_S5: u8 = 1 << 5 | 5 << 2;

/// Powers off. Without ACPI Linux can only halt, which would leave a machine that does nothing: there we write the
/// register ourselves, or reset the machine where the kernel does not let us.
pub fn off() -> anyhow::Result<Infallible> {
    sync();
    if Path::new("/sys/firmware/acpi").exists() {
        return reboot(RebootMode::RB_POWER_OFF).context("cannot power off");
    }
    enter_s5();
    reset()
}

/// Resets the machine.
pub fn reset() -> anyhow::Result<Infallible> {
    sync();
    reboot(RebootMode::RB_AUTOBOOT).context("cannot reboot")
}

/// The machine goes at the write: it returns only where the port is not ours to write.
fn enter_s5() {
    // SAFETY: lets this thread use one port, kite's own power register, and touches no memory.
    unsafe {
        if libc::ioperm(POWER_PORT.into(), 1, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") POWER_PORT, in("al") ENTER_S5, options(nomem, nostack));
        }
    }
}
