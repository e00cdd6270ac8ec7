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

/// The path of the function that this is in.
macro_rules! test_name {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here)
    }};
}

/// What a test needs; where the host lacks it, the test that this is in ends with a line that says why.
macro_rules! needs {
    ($need:expr) => {
        match $need {
            Ok(found) => found,
            Err(reason) => return $crate::support::skipped(test_name!(), &reason),
        }
    };
}

/// Whether KVM can be used.
///
/// # Errors
/// Why it cannot.
pub fn kvm() -> Result<(), String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.map(drop).map_err(|error| format!("/dev/kvm: {error}"))
}

/// Whether this process can become other users.
///
/// # Errors
/// It is not root.
pub fn root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("not root".to_owned()) }
}

/// Prints why a test, by its name or path, does not run, past the test harness, which would hide it.
pub fn skipped(test: &str, reason: &str) {
    let mut parts = test.rsplit("::").filter(|part| !matches!(*part, "here" | "{{closure}}"));
    let name = parts.next().unwrap_or(test);
    // In one piece: other tests print at the same time.
    let _ = io::stderr().write_all(format!("skipped: {name}: {reason}\n").as_bytes());
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
