//! What tests of the binary share: kite as a child, folders of input for it, tiny guests, and reasons not to run.

pub mod attempt;
pub mod child;
#[macro_use]
pub mod guest;
pub mod image;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

/// The binary under test.
pub const KITE: &str = env!("CARGO_BIN_EXE_kite");
/// What takes this long without progress hangs, on a machine with much else to do, too. No time is asserted anywhere.
pub const HANG: Duration = Duration::from_secs(300);
/// The ID of a user without rights.
pub const NOBODY: u32 = 65534;

/// Prints that `test` does not run and returns `true`, if KVM cannot be used.
pub fn no_kvm(test: &str) -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => false,
        Err(error) => {
            skipped(test, &format!("/dev/kvm: {error}"));
            true
        }
    }
}

/// Prints that `test` does not run and returns `true`, if this process cannot become other users.
pub fn not_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped(test, "not root");
    }
    !root
}

/// Prints why `test` does not run, past the test harness, which would hide it.
pub fn skipped(test: &str, reason: &str) {
    // In one piece: other tests print at the same time.
    let _ = io::stderr().write_all(format!("skipped: {test}: {reason}\n").as_bytes());
}

/// Waits for something that ought to happen.
#[track_caller]
pub fn until(what: &str, happens: impl FnMut() -> bool) {
    until_stuck(what, || 0, happens);
}

/// Waits for something that ought to happen, as long as there is progress: an emulated processor takes its time.
#[track_caller]
fn until_stuck(what: &str, progress: impl Fn() -> usize, mut happens: impl FnMut() -> bool) {
    let (mut deadline, mut reached) = (Instant::now() + HANG, progress());
    while !happens() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
        if progress() != reached {
            (deadline, reached) = (Instant::now() + HANG, progress());
        }
    }
}

/// Does something that may hang, and fails the test if it does.
pub fn guarded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let worker = thread::spawn(work);
    until("the library to return", || worker.is_finished());
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The VM process that the supervisor with this ID has started.
pub fn vm_process(supervisor: u32) -> u32 {
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    children.split_whitespace().next().map_or(supervisor, |child| child.parse().unwrap())
}
