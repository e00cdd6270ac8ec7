//! The log of the guest's kernel: the last of it in a ring, and shown or written to a file as it comes, if asked for. It
//! comes over the serial port, which every kernel has from its first line on and has when it panics.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::Context;
use devices::chipset::serial::{Host, Serial};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::streams::Wake;
use crate::host::atomic_file;
use crate::host::lock::lock;
use crate::host::messages::write_all;
use crate::host::terminal;
use crate::host::thread::{self, ThreadKind};
use crate::observe::crash::text::PanicText;
use crate::observe::trace::{Milestones, Timeline};

/// How many bytes the ring holds.
const RING: usize = 256 << 10;
/// The thread's stack in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// What every kernel prints at its start that has no PCI, by kite's own command line: it is no failure's cause.
const NO_PCI: &str = "PCI: Fatal: No config space access function found";

/// Where the messages go.
pub struct KernelLog {
    shared: Arc<Shared>,
}

struct Shared {
    printed: Mutex<Printed>,
    /// The file, and its path for the message that it cannot be written.
    file: Option<(PathBuf, File)>,
    shown: bool,
    wake: Arc<Wake>,
    closing: AtomicBool,
    ended: AtomicBool,
    /// Why the file could not be written, unless its reader had gone.
    failure: OnceLock<String>,
    timeline: Arc<Timeline>,
}

/// What was printed so far.
#[derive(Default)]
struct Printed {
    /// The last of it.
    ring: VecDeque<u8>,
    /// Bytes in all.
    count: u64,
    panic: PanicText,
    milestones: Milestones,
}

impl KernelLog {
    /// With a `file`, that is made anew, or emptied; a link is not followed.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(file: Option<&Path>, shown: bool, timeline: Arc<Timeline>) -> anyhow::Result<Self> {
        let make = |path: &Path| {
            let file = atomic_file::emptied(path).with_context(|| not_written(path))?;
            anyhow::Ok((path.to_owned(), file))
        };
        let file = file.map(make).transpose()?;
        let (printed, wake) = (Mutex::default(), Wake::new()?);
        let (closing, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let failure = OnceLock::new();
        let shared = Shared { printed, file, shown, wake, closing, ended, failure, timeline };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What the serial port is to wake.
    pub fn host(&self) -> Box<dyn Host> {
        Box::new(Woken(self.shared.wake.clone()))
    }

    /// Starts to take what `serial` has, on a thread that wakes `done` at its end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(super) fn start(&self, serial: Arc<Mutex<Serial>>, done: Arc<Wake>) -> anyhow::Result<()> {
        let shared = self.shared.clone();
        let run = move || {
            shared.run(&serial);
            shared.ended.store(true, Ordering::SeqCst);
            done.wake();
        };
        thread::spawn_gathered("kernel-log", STACK, ThreadKind::Io, run).map(drop)
    }

    /// The machine has stopped: what the serial port has is all there is.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake.wake();
    }

    /// Whether all there is has been taken.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// The last `count` lines that may say why a guest failed, without control characters.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = lock(&self.shared.printed).ring.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(str::trim_end);
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.ends_with(NO_PCI)).collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|line| printable(line)).collect()
    }

    /// How many bytes were printed.
    pub fn progress(&self) -> u64 {
        lock(&self.shared.printed).count
    }

    /// Whether a panic was among them.
    pub fn panic_seen(&self) -> bool {
        lock(&self.shared.printed).panic.seen()
    }

    /// Why the file could not be written, if it could not, and not because its reader had gone.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// Whether everything is on the user's screen already.
    pub fn is_shown(&self) -> bool {
        self.shared.shown
    }
}

impl Shared {
    fn run(&self, serial: &Mutex<Serial>) {
        let mut buffer = Vec::new();
        let mut line = Vec::new();
        let mut written = true;
        loop {
            // Before looking: what comes after that wakes again.
            self.wake.clear();
            let closing = self.closing.load(Ordering::SeqCst);
            lock(serial).take_output(&mut buffer);
            if buffer.is_empty() {
                if closing {
                    break;
                }
                let _ = poll(&mut [PollFd::new(self.wake.event(), PollFlags::POLLIN)], PollTimeout::NONE);
                continue;
            }
            written = written && self.write(&buffer);
            self.record(&buffer);
            if self.shown {
                show(&mut line, &buffer);
            }
            buffer.clear();
        }
        if !line.is_empty() {
            show(&mut line, b"\n");
        }
    }

    /// Writes to the file, and answers whether more can be written. A failure is reported at once.
    fn write(&self, bytes: &[u8]) -> bool {
        let Some((path, file)) = &self.file else { return false };
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\r').collect();
        let Err(error) = write_all(file.as_fd(), &text) else { return true };
        if error != Errno::EPIPE {
            let why = format!("{}: {}", not_written(path), io::Error::from(error));
            terminal::tell(&why);
            let _ = self.failure.set(why);
        }
        false
    }

    fn record(&self, bytes: &[u8]) {
        let mut printed = lock(&self.printed);
        printed.count += bytes.len() as u64;
        printed.panic.feed(bytes);
        printed.milestones.feed(bytes, &self.timeline);
        printed.ring.extend(bytes);
        let over = printed.ring.len().saturating_sub(RING);
        printed.ring.drain(..over);
    }
}

fn not_written(path: &Path) -> String {
    format!("cannot write the kernel's messages to {}", path.display())
}

/// Shows whole lines.
fn show(line: &mut Vec<u8>, bytes: &[u8]) {
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        line.extend_from_slice(part);
        if part.ends_with(b"\n") || line.len() > 1 << 12 {
            terminal::line_now(&printable(String::from_utf8_lossy(line).trim_end()));
            line.clear();
        }
    }
}

/// A guest's line on the user's terminal, which must not obey it.
fn printable(line: &str) -> String {
    line.chars().map(|char| if char.is_control() && char != '\t' { '\u{fffd}' } else { char }).collect()
}

struct Woken(Arc<Wake>);

impl Host for Woken {
    fn output_ready(&self) {
        self.0.wake();
    }

    fn input_wanted(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_s_last_lines_are_without_the_one_about_pci() {
        let log = KernelLog::new(None, false, Arc::new(Timeline::new(std::time::Instant::now()))).unwrap();
        log.shared.record(
            b"[    0.1] PCI: Fatal: No config space access function found\r\n\r\n[    0.2] Oops\x1b\r\n",
        );
        assert_eq!(log.last_lines(60), ["[    0.2] Oops\u{fffd}"]);
        assert_eq!(log.last_lines(0), [""; 0]);
    }
}
