//! Watches a test: that it ends, what it logs, which files and threads it leaves behind.
#![expect(unsafe_code, reason = "asks how much processor time another thread has had")]

use std::cell::Cell;
use std::io::Write;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// The processor time after which a case counts as one without an end. The slowest takes half a second on a quiet
/// machine and several when other threads hold the host's locks, so this says nothing of speed.
const PROCESSOR: Duration = Duration::from_secs(30);
/// The time that one case may wait for what never comes.
const WAITING: Duration = Duration::from_secs(60);

/// Runs `case`; ends the process, naming the case, if that does not come to an end.
pub fn watched<T>(name: &str, case: impl FnOnce() -> T) -> T {
    let clock = clock();
    let start = time(clock).expect("a thread can read its own clock");
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            const STEP: Duration = Duration::from_millis(100);
            let mut waited = Duration::ZERO;
            while wait.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                waited += STEP;
                let used = time(clock).map_or(Duration::ZERO, |now| now.saturating_sub(start));
                if used > PROCESSOR || waited > WAITING {
                    // Not by `eprintln`: what a test prints is kept, and lost with the process.
                    let message = format!("{name}: no end after {used:?} of processor time\n");
                    let _nobody_listens = std::io::stderr().write_all(message.as_bytes());
                    std::process::abort();
                }
            }
        });
        let result = case();
        drop(done);
        result
    })
}

/// The clock of this thread's processor time.
fn clock() -> libc::clockid_t {
    let mut clock = 0;
    // SAFETY: writes one clock id; a thread's own id is valid.
    let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    assert_eq!(failed, 0, "a thread has a clock");
    clock
}

/// What `clock` shows; nothing once its thread has ended.
fn time(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (failed == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Runs the test `name` (`virtio::tests::…`) in a process of its own, where nobody else opens files or starts threads.
pub fn alone(name: &str, test: impl FnOnce()) {
    const MARK: &str = "KITE_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return test();
    }
    let exe = std::env::current_exe().expect("a test has a program");
    let child = Command::new(exe).args(["--exact", name, "--nocapture"]).env(MARK, "1").output();
    let child = child.expect("a test can run itself");
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains("1 passed"), "{name} alone: {output}");
}

/// How many files this process has open, and how many threads it has.
pub fn files_and_threads() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"]
        .map(|folder| std::fs::read_dir(folder).expect("/proc is mounted").count())
}

thread_local! {
    static LINES: Cell<u32> = const { Cell::new(0) };
}

/// Counts lines per thread, and passes none on.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _record: &log::Record<'_>) {
        LINES.set(LINES.get() + 1);
    }

    fn flush(&self) {}
}

/// Counts from here on what threads log as information or worse.
pub(super) fn count_lines() {
    // The second time it is there already.
    if log::set_logger(&Lines).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// How many lines this thread has logged since the last call.
pub fn lines_logged() -> u32 {
    LINES.take()
}
