//! What becomes of a system call that is refused: its name, number and thread are reported, and the process ends
//! (seccomp(2), SECCOMP_RET_TRAP).
#![expect(unsafe_code, reason = "a signal's handler")]

use std::io;
use std::sync::OnceLock;

use anyhow::Context;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use syscalls::Sysno;

use super::AUDIT_ARCH_X86_64;
use crate::host::exit_code::FAILED;
use crate::sandbox;

/// What the kernel says of the call (sigaction(2), `si_syscall`): `si_signo`, `si_errno`, `si_code`, padding,
/// `si_call_addr`, and then this.
#[repr(C)]
struct Refusal {
    _signal: [libc::c_int; 2],
    code: libc::c_int,
    _padding: libc::c_int,
    _address: *const libc::c_void,
    call: libc::c_int,
    architecture: libc::c_uint,
}

/// The code of a signal that only a filter sends (Linux `include/uapi/asm-generic/siginfo.h`).
const SYS_SECCOMP: libc::c_int = 1;
/// What is said of a signal that another process has sent. The process ends with an exit code then, as no rule lets it end by the
/// signal itself.
const SENT: &[u8] = b"kite: ended by a signal SIGSYS that was sent; no system call was refused\n";

/// A text of bounded length, put together without the heap.
struct Text {
    bytes: [u8; 192],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 192], len: 0 }
    }

    fn push(&mut self, part: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let len = part.len().min(room.len());
        room[..len].copy_from_slice(&part[..len]);
        self.len += len;
    }

    fn push_number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}

/// The line that reports it.
fn line(who: &[u8], thread: &[u8], call: i32, architecture: u32) -> Text {
    let mut text = Text::new();
    text.push(b"kite: the sandbox refuses ");
    text.push(who);
    let printable = |byte: &&u8| byte.is_ascii_graphic();
    thread.iter().take_while(printable).for_each(|byte| text.push(&[*byte]));
    // Other architectures number theirs otherwise.
    let known = (architecture == AUDIT_ARCH_X86_64).then(|| usize::try_from(call).ok().and_then(Sysno::new));
    text.push(if known.is_some() { b" system call " } else { b" 32-bit system call " });
    text.push(known.flatten().map_or("unknown", |call| call.name()).as_bytes());
    text.push(b" (");
    text.push_number(call.unsigned_abs());
    text.push(b"): the guest has taken over kite, or kite lacks a rule; please report it\n");
    text
}

/// Allocates nothing, locks nothing, and does not return.
extern "C" fn refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler set up so this structure, which has these members if its code says so.
    let refusal = unsafe { &*info.cast::<Refusal>() };
    let mut text = Text::new();
    if refusal.code == SYS_SECCOMP {
        let mut name = [0_u8; 16];
        // SAFETY: writes 16 bytes at most.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let who = WHO.get().copied().unwrap_or_default();
        text = line(who.as_bytes(), &name, refusal.call, refusal.architecture);
    } else {
        text.push(SENT);
    }
    // SAFETY: reads the text.
    unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.len) };
    sandbox::leave_terminal();
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(FAILED.into()) };
}

/// What goes before the thread's name.
static WHO: OnceLock<&str> = OnceLock::new();

/// Has refused calls reported, as those of `who`, a word that goes before the thread's name.
///
/// # Errors
/// The kernel has no filters that report what they refuse.
pub(super) fn report(who: &'static str) -> anyhow::Result<()> {
    can_be_reported().context("this kernel has no filters that report what they refuse")?;
    // A process is locked once.
    let _ = WHO.set(who);
    let handler = SigHandler::SigAction(refused);
    let action = SigAction::new(handler, SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO, SigSet::all());
    // SAFETY: the handler does only what a handler may.
    unsafe { sigaction(Signal::SIGSYS, &action) }.context("cannot handle refused calls").map(drop)
}

/// Whether the kernel knows that answer to a call.
fn can_be_reported() -> io::Result<()> {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: reads a number.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if known == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(thread: &[u8], call: i32) -> String {
        line_of(thread, call, AUDIT_ARCH_X86_64)
    }

    fn line_of(thread: &[u8], call: i32, architecture: u32) -> String {
        let text = line(b"thread ", thread, call, architecture);
        String::from_utf8(text.bytes[..text.len].to_vec()).unwrap()
    }

    #[test]
    fn a_refused_call_is_reported_by_name_number_and_thread() {
        let execve = said(b"vcpu0\0\0\0\0\0\0\0\0\0\0\0", libc::SYS_execve as i32);
        assert!(
            execve.starts_with("kite: the sandbox refuses thread vcpu0 system call execve (59):"),
            "{execve}"
        );
        assert!(execve.ends_with("please report it\n"));
        assert!(said(b"\x1b\0", 99_999).contains("thread  system call unknown (99999)"));
        // i386's number 11, which is munmap(2) here.
        let other = line_of(b"x\0", 11, 0x4000_0003);
        assert!(other.contains("thread x 32-bit system call unknown (11)"), "{other}");
    }
}
