//! One boot, watched from outside: what comes out of the monitor when, and when it has ended.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::subject::{Guest, Monitor};
use crate::cmd::bench::exits::steal_ns;
use crate::host::child::{self, End, Stream};

/// What a boot comes to, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// kite enters the guest for the first time.
    FirstInstruction,
    /// The first byte on the serial port.
    FirstOutput,
    /// The first word of kite's own `/init`.
    UserSpace,
    /// The monitor has ended.
    PowerOff,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::FirstInstruction, Self::FirstOutput, Self::UserSpace, Self::PowerOff];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstInstruction => "first_instruction",
            Self::FirstOutput => "first_output",
            Self::UserSpace => "user_space",
            Self::PowerOff => "power_off",
        }
    }
}

/// What one boot took.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Microseconds from exec to each stage that was reached.
    pub us: [Option<u32>; Stage::ALL.len()],
    /// How often the monitor's threads lost their CPUs.
    pub nivcsw: u64,
    /// What the hypervisor below took of all CPUs, in nanoseconds.
    pub steal_ns: u64,
    /// Why it went no further, if it did not.
    pub trouble: Option<String>,
}

/// What every line of kite's own `/init` begins with, behind the kernel's time stamp if it has one.
const INIT: &[u8] = b"kite: ";
/// Of what a monitor says on standard error, the end is kept.
const KEPT: usize = 4096;

/// Listens to the guest.
#[derive(Default)]
struct Ear {
    start: u64,
    first: Option<u64>,
    init: Option<u64>,
    /// The last bytes, in which the beginning of a word may be.
    tail: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ear {
    fn hear(&mut self, stream: Stream, bytes: &[u8], now: u64) {
        if stream == Stream::Stderr {
            self.stderr.extend(bytes);
            let extra = self.stderr.len().saturating_sub(KEPT);
            self.stderr.drain(..extra);
            return;
        }
        self.first.get_or_insert(now);
        if self.init.is_none() {
            self.tail.extend(bytes);
            if self.tail.windows(INIT.len()).any(|part| part == INIT) {
                self.init = Some(now);
            }
            let extra = self.tail.len().saturating_sub(INIT.len() - 1);
            self.tail.drain(..extra);
        }
    }

    fn us(&self, at: Option<u64>) -> Option<u32> {
        at.map(|at| u32::try_from(at.saturating_sub(self.start) / 1000).unwrap_or(u32::MAX))
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

fn lost_cpus() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN);
    usage.map_or(0, |usage| usage.involuntary_context_switches()).try_into().unwrap_or(0)
}

/// Boots once; nothing if `stop` has become readable.
///
/// # Errors
/// The monitor cannot be started or followed.
pub fn boot(
    guest: &Guest,
    monitor: Monitor,
    folder: &Path,
    limit: Duration,
    stop: BorrowedFd<'_>,
) -> anyhow::Result<Option<Boot>> {
    let trace = folder.join("trace.json");
    // What is left of the last one is not this one's.
    let _none = fs::remove_file(&trace);
    let mut command = guest.command(monitor, &trace);
    let (nivcsw, steal) = (lost_cpus(), steal_ns());
    let mut ear = Ear { start: now(), ..Ear::default() };
    let mut take = |stream, bytes: &[u8]| ear.hear(stream, bytes, now());
    let ended = child::run(&mut command, b"", Some(stop), Some(limit), &mut take)?;
    let end = now();
    let trouble = match ended {
        End::Stopped => return Ok(None),
        End::Late => Some(format!("it had not powered off after {}", humantime::format_duration(limit))),
        End::Status(status) => (!status.success()).then(|| failure(status, &ear.stderr)),
    };
    let entered = match monitor {
        Monitor::Kite => entered(&trace),
        Monitor::Qemu => None,
    };
    let off = trouble.is_none().then_some(end);
    let init = ear.init.filter(|_| guest.is_linux);
    Ok(Some(Boot {
        us: [entered, ear.first, init, off].map(|at| ear.us(at)),
        nivcsw: lost_cpus().saturating_sub(nivcsw),
        steal_ns: steal_ns().saturating_sub(steal),
        trouble,
    }))
}

/// How a monitor ended, and its last words.
fn failure(status: ExitStatus, stderr: &[u8]) -> String {
    let stderr = String::from_utf8_lossy(stderr);
    let said = stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}: {said}"),
        (_, signal) => format!("signal {} ended it: {said}", signal.unwrap_or(0)),
    }
}

/// When kite entered its guest first, by its trace.
fn entered(trace: &Path) -> Option<u64> {
    entered_in(&serde_json::from_slice(&fs::read(trace).ok()?).ok()?)
}

fn entered_in(trace: &Value) -> Option<u64> {
    let begun = trace["otherData"]["begun_monotonic_ns"].as_u64()?;
    let events = trace["traceEvents"].as_array()?;
    let entered = events.iter().find(|event| event["name"] == "first instruction")?;
    begun.checked_add(entered["ts"].as_u64()?.checked_mul(1000)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_two_pieces_is_heard_when_it_is_whole() {
        let mut ear = Ear { start: 1000, ..Ear::default() };
        for (bytes, now) in
            [(&b"Linux kite.trace\r\n[ 1.0] ki"[..], 5000), (b"te: ", 9000), (b"kite: up", 11_000)]
        {
            ear.hear(Stream::Stdout, bytes, now);
        }
        assert_eq!((ear.us(ear.first), ear.us(ear.init)), (Some(4), Some(8)));
        assert!(ear.tail.len() < INIT.len());
    }

    #[test]
    fn what_a_monitor_says_of_itself_is_not_the_guests() {
        let mut ear = Ear::default();
        ear.hear(Stream::Stderr, b"kite: no memory\n", 7);
        assert_eq!((ear.first, ear.init), (None, None));
        let status = ExitStatus::from_raw(125 << 8);
        assert_eq!(failure(status, &ear.stderr), "it ended with status 125: kite: no memory");
        assert_eq!(failure(ExitStatus::from_raw(9), b" \n"), "signal 9 ended it: it said nothing");
    }

    #[test]
    fn a_trace_tells_when_the_guest_was_entered_by_the_clock_that_all_share() {
        let trace = |begun: Value| {
            let events = serde_json::json!([{ "name": "first KVM_RUN", "ts": 3 }, { "name": "first instruction", "ts": 5 }]);
            serde_json::json!({ "otherData": { "begun_monotonic_ns": begun }, "traceEvents": events })
        };
        assert_eq!(entered_in(&trace(700.into())), Some(5700));
        assert_eq!(entered_in(&trace(Value::Null)), None);
    }
}
