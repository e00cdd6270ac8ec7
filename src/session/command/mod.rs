//! The session of a command: takes what the guest reports, passes on what the user does, and sees to the limits of time.

mod forwarding;
mod kernel_log;
pub mod results;
mod streams;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use devices::chipset::serial::Host;
use devices::virtio::console::Port;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

use super::{End, Next, Outcome, Progress, Session, Stopped, Wiring, event_loop, rounded_up};
use crate::host::signals::Signals;
use crate::host::terminal::{self, RawTerminal};
use crate::host::{exit_code, messages};
use crate::observe::crash::watchdog;
use crate::observe::results::Ending;
use crate::observe::trace::{Mark, Timeline};
use crate::spec::wire::{self, CONTROL, Messages, NO_PORT, Order, Output, Report};
use crate::vcpu::stop::Exit;
use crate::vm::machine::Running;
use forwarding::Forwarding;
pub use kernel_log::KernelLog;
use streams::{Event, Inbox, InputStream, OutputStream, Wake};

pub use streams::Tee;

/// How long what the guest says it has written may take to arrive, while nothing blocks it.
const ARRIVAL: Duration = Duration::from_secs(2);
/// How long readers that do not read may hold up the end of a kite that is to end at once.
const GRACE: Duration = Duration::from_secs(1);
/// How often something that has no event is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How many bytes of orders wait for a guest that reads none; more are dropped.
const ORDERS_MAX: usize = 4096;

/// How many lacks the user hears of: a guest may make up any number.
const LACKS_MAX: usize = 10;

/// How many of the kernel's last lines show a crash.
const LAST_LINES: usize = 60;

/// The beginning of the message about a guest that took too long; then comes the limit.
pub const GUEST_ENDED: &str = "the guest was ended: ";

/// A command's session. It lasts as long as its one machine.
pub struct CommandSession {
    log: KernelLog,
    stdin: Arc<InputStream>,
    outputs: [Arc<OutputStream>; 2],
    control: Arc<Port>,
    inbox: Arc<Inbox>,
    messages: Messages,
    orders: Vec<u8>,
    /// How the command ended, once that is known, and when something arrived last.
    ended: Option<(wire::End, Instant)>,
    arrived: u64,
    /// How often the guest has said that it lacks something.
    lacks: usize,
    terminal: Option<wire::Terminal>,
    /// The user's terminal, while it passes on every key.
    raw: Option<RawTerminal>,
    /// Keys of kite's own are separated from the command's.
    has_keys: bool,
    limits: Limits,
    /// The signals that are the command's, if it gets any.
    forwarding: Option<Forwarding>,
    has_started: bool,
    /// What takes the command's standard output besides kite's own.
    tee: Option<Tee>,
    timeline: Arc<Timeline>,
}

impl CommandSession {
    /// A session that is not connected yet.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn new(
        terminal: Option<wire::Terminal>,
        log: KernelLog,
        limits: Limits,
        tee: Option<Tee>,
        timeline: Arc<Timeline>,
    ) -> anyhow::Result<Self> {
        let wake = Wake::new()?;
        let control = wake.port(CONTROL)?;
        let [stdout, stderr] = Output::ALL.map(OutputStream::new);
        Ok(Self {
            log,
            stdin: InputStream::new()?,
            outputs: [stdout?, stderr?],
            control,
            inbox: Inbox::new(wake),
            messages: Messages::default(),
            orders: Vec::new(),
            ended: None,
            arrived: 0,
            lacks: 0,
            terminal,
            raw: None,
            has_keys: true,
            limits,
            forwarding: None,
            has_started: false,
            tee,
            timeline,
        })
    }

    /// The same without keys of kite's own: what is typed is the command's.
    pub fn without_keys(self) -> Self {
        Self { has_keys: false, ..self }
    }

    /// The same with signals passed on to the command; `stop_signal` is what asks it to end.
    #[must_use]
    pub fn forwarding_signals(self, stop_signal: i32) -> Self {
        Self { forwarding: Some(Forwarding::new(stop_signal)), ..self }
    }

    /// Takes the guest's reports.
    fn take_reports(&mut self) {
        let mut bytes = Vec::new();
        self.control.take_output(&mut bytes);
        let (outputs, stdin, ended) = (&self.outputs, &self.stdin, &mut self.ended);
        let (timeline, lacks, has_started) = (&self.timeline, &mut self.lacks, &mut self.has_started);
        self.messages.feed(&bytes, |report| match report {
            Report::Lacks(what) => {
                if *lacks < LACKS_MAX {
                    terminal::tell(&what);
                }
                *lacks = lacks.saturating_add(1);
            }
            Report::Started => {
                *has_started = true;
                timeline.mark(Mark::CommandStart);
            }
            Report::Closed { output, bytes } => outputs[output as usize].close_after(bytes),
            Report::Unread => stdin.stop(),
            Report::Ended(end) => {
                // Those that the guest has not come to open have nothing to say.
                outputs.iter().for_each(|output| output.command_ended());
                timeline.mark(Mark::CommandEnd);
                ended.get_or_insert((end, Instant::now()));
            }
        });
    }

    /// How the command ended, once all that it wrote has arrived and is written, or does not come.
    fn whole_end(&mut self) -> Option<wire::End> {
        let (end, since) = self.ended.as_mut()?;
        let progress = self.outputs.iter().map(|output| output.progress());
        let (arrived, writing) = progress.fold((0, false), |sum, it| (sum.0 + it.0, sum.1 || it.1));
        if arrived != self.arrived || writing {
            (self.arrived, *since) = (arrived, Instant::now());
        }
        let whole = self.outputs.iter().all(|output| output.has_ended());
        (whole || since.elapsed() > ARRIVAL).then(|| end.clone())
    }

    fn take_events(&mut self, machine: &Running) {
        for event in self.inbox.take() {
            match event {
                Event::Unread(output) => self.order(&Order::HangUp(output)),
                Event::Quit => machine.exit().request(Exit::Quit),
            }
        }
    }

    fn order(&mut self, order: &Order) {
        let message = wire::encode(order);
        if self.orders.len() + message.len() <= ORDERS_MAX {
            self.orders.extend(message);
        }
    }

    fn send(&mut self) {
        if !self.orders.is_empty() {
            let taken = self.control.receive(&self.orders);
            self.orders.drain(..taken);
        }
    }

    /// Why the command's end is worth nothing: what it wrote, or its kernel, could not be written.
    pub fn failure(&self) -> Option<String> {
        let outputs = self.outputs.iter().find_map(|output| output.failure());
        outputs.or_else(|| self.log.failure().map(str::to_owned))
    }

    /// How many bytes of what the command and its kernel have printed are out.
    fn written(&self) -> u64 {
        self.outputs.iter().map(|output| output.progress().0).sum::<u64>() + self.log.progress()
    }

    /// Waits until the user has read what kite had to say, as long as `finish` would wait for what the guest had.
    fn flush(&self, stopped: &Stopped<'_>, patience: Patience) -> Option<i32> {
        let mut signal = None;
        messages::flush(|stuck| {
            signal = event_loop::ending_signal(stopped.signals, stopped.machine);
            let now = Instant::now();
            let left = now.checked_sub(stuck).and_then(|since| patience.left(now, since));
            signal.is_some() || left == Some(Duration::ZERO)
        });
        signal
    }

    /// Says why the command did not come to its end: what the kernel printed last, where each vCPU was, and last, where
    /// eyes fall first, what happened.
    fn explain(&self, stopped: &Stopped<'_>, why: &str, outcome: Outcome) -> Outcome {
        let lines = self.log.last_lines(LAST_LINES);
        if !lines.is_empty() && !self.log.is_shown() {
            messages::complain("the kernel's last lines:");
            lines.iter().for_each(|line| terminal::line(&format!("  {line}")));
        }
        stopped.report_crash();
        messages::complain(why);
        if !stopped.has_modules && lines.iter().any(|line| line.contains(NO_PORT)) {
            let version = stopped.version.as_deref();
            messages::complain(&lacks_modules(version.unwrap_or("(which has no version in its file)")));
        }
        Outcome { log: lines.join("\n"), ..outcome }
    }

    fn crashed(&self, stopped: &Stopped<'_>, what: String, why: &str) -> Outcome {
        self.explain(stopped, why, Outcome::new(exit_code::CRASHED, Ending::Crashed(what)))
    }

    fn late(&self, stopped: &Stopped<'_>, limit: String) -> Outcome {
        let why = format!("{}{limit}", GUEST_ENDED);
        self.explain(stopped, &why, Outcome::new(exit_code::TIMED_OUT, Ending::TimedOut(limit)))
    }
}

impl Session for CommandSession {
    fn wiring(&self) -> Wiring {
        let [stdout, stderr] = &self.outputs;
        let ports = [&self.control, &self.stdin.port, &stdout.port, &stderr.port];
        Wiring { hvc: None, ports: ports.map(Arc::clone).into() }
    }

    fn serial_host(&self) -> Box<dyn Host> {
        self.log.host()
    }

    fn start(&mut self, machine: &Running) -> anyhow::Result<()> {
        let raw = if self.terminal.is_some() { RawTerminal::new()? } else { None };
        messages::start()?;
        self.log.start(machine.serial().clone(), self.inbox.wake.clone())?;
        let [stdout, stderr] = &self.outputs;
        stdout.start(self.inbox.clone(), self.tee.take(), self.timeline.clone())?;
        stderr.start(self.inbox.clone(), None, self.timeline.clone())?;
        self.stdin.start(self.inbox.clone(), raw.is_some() && self.has_keys)?;
        self.raw = raw;
        Ok(())
    }

    fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::new(self.inbox.wake.event(), PollFlags::POLLIN));
    }

    fn timeout(&self) -> Duration {
        let most = if self.ended.is_some() { TICK } else { watchdog::INTERVAL };
        let lefts = [self.limits.left(), self.forwarding.as_ref().and_then(Forwarding::left)];
        lefts.into_iter().flatten().fold(most, Duration::min)
    }

    fn idle_timeout(&self) -> Option<Duration> {
        self.limits.idle_timeout
    }

    fn serve(&mut self, _ready: &[bool], machine: &Running) {
        self.inbox.wake.clear();
        self.take_reports();
        self.take_events(machine);
        self.send();
        let exit = machine.exit();
        if let Some(end) = self.whole_end() {
            exit.request(Exit::Command(end));
        } else if self.limits.left() == Some(Duration::ZERO) {
            exit.request(Exit::TimedOut);
        } else if self.forwarding.as_ref().and_then(Forwarding::left) == Some(Duration::ZERO) {
            exit.request(Exit::Signal(Signal::SIGTERM as i32));
        }
    }

    fn take_signal(&mut self, signal: i32) -> bool {
        let is_running = self.has_started && self.ended.is_none();
        let passed_on = self.forwarding.as_mut().filter(|_| is_running).and_then(|it| it.take(signal));
        if let Some(signal) = passed_on {
            self.order(&Order::Signal(signal));
            self.send();
        }
        passed_on.is_some()
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        self.order(&Order::Resize { columns, rows });
    }

    fn progress(&self) -> Progress {
        Progress { bytes: self.written() + self.stdin.progress(), panic_seen: self.log.panic_seen() }
    }

    fn finish(&mut self, machine: &Running, signals: &Signals) -> anyhow::Result<Option<i32>> {
        self.raw = None;
        self.stdin.stop();
        terminal::restore();
        self.outputs.iter().for_each(|output| output.close());
        self.log.close();
        let patience = Patience::after(machine.exit().reason(), &self.limits);
        let (mut since, mut written) = (Instant::now(), self.written());
        while !self.log.has_ended() || !self.outputs.iter().all(|output| output.has_ended()) {
            if patience != Patience::Brief && self.written() != written {
                (since, written) = (Instant::now(), self.written());
            }
            let left = patience.left(Instant::now(), since);
            if left == Some(Duration::ZERO) {
                break;
            }
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.inbox.wake.event(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, rounded_up(left)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the last of the output"),
            }
            self.inbox.wake.clear();
            if let Some(signal) = event_loop::ending_signal(signals, machine) {
                return Ok(Some(signal));
            }
        }
        Ok(None)
    }

    fn conclude(&mut self, end: End, stopped: &Stopped<'_>) -> anyhow::Result<Next> {
        let outcome = match end {
            End::Signal(signal) => return Ok(Outcome::signalled(signal).into()),
            End::Failed(what) => bail!(what),
            End::Command(end) => match self.failure() {
                Some(why) => Outcome::new(exit_code::FAILED, Ending::Failed(why)),
                None => ended(end),
            },
            End::TimedOut => {
                let limit = self.limits.timeout.unwrap_or_default();
                self.late(stopped, format!("the command did not end within {limit:?} (--timeout)"))
            }
            End::Idle(limit) => {
                self.late(stopped, format!("it neither ran nor printed for {limit:?} (--idle-timeout)"))
            }
            End::Quit => Outcome::new(exit_code::QUIT, Ending::Failed("ended by the user".to_owned())),
            End::Crashed(what) => {
                let why = format!("the guest crashed: {what}");
                self.crashed(stopped, what, &why)
            }
            End::Off | End::Reboot | End::Status(_) => {
                let what = "the guest went off before the command had ended";
                self.crashed(stopped, what.to_owned(), what)
            }
        };
        let patience = Patience::after(stopped.machine.exit().reason(), &self.limits);
        let signal = self.flush(stopped, patience);
        Ok(signal.map_or(outcome, Outcome::signalled).into())
    }
}

/// What a command's own end comes to.
fn ended(end: wire::End) -> Outcome {
    let (code, ending, why) = match end {
        wire::End::Exited(status) => return Outcome::new(status, Ending::Exited(status)),
        // Whatever the guest says, it is no more than a byte.
        wire::End::Signalled(signal) => {
            let signal = signal & 0x7f;
            return Outcome::new(exit_code::of_signal(signal), Ending::Signalled(signal));
        }
        wire::End::NotFound(what) => (exit_code::NOT_FOUND, Ending::NotFound, what),
        wire::End::NotExecutable(what) => (exit_code::NOT_EXECUTABLE, Ending::NotExecutable, what),
        wire::End::Failed(what) => (exit_code::FAILED, Ending::Failed(what.clone()), what),
    };
    messages::complain(&why);
    Outcome::new(code, ending)
}

/// What helps where a kernel has its drivers neither built in nor in a folder that kite has found.
fn lacks_modules(version: &str) -> String {
    format!(
        "there is no folder of modules for kernel {version}, which has not all that it needs built in: install it in \
         /lib/modules/{version}, or name it with --modules DIR"
    )
}

/// How long the end of kite waits for who reads its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// As long as it takes, or until a signal; after this time, if there is one, so long as something is read within
    /// [`GRACE`].
    Until(Option<Instant>),
    /// So long as something is read within [`GRACE`].
    WhileRead,
    /// [`GRACE`] in all.
    Brief,
}

impl Patience {
    /// With a machine that stopped for this reason.
    fn after(reason: Option<&Exit>, limits: &Limits) -> Self {
        match reason {
            Some(Exit::Signal(_) | Exit::Quit) => Self::Brief,
            Some(Exit::TimedOut | Exit::Idle(_)) => Self::WhileRead,
            _ => Self::Until(limits.timeout.and_then(|timeout| limits.start.checked_add(timeout))),
        }
    }

    /// How long it lasts from `now` if nothing has been read since then; nothing if for ever.
    fn left(self, now: Instant, since: Instant) -> Option<Duration> {
        let grace = GRACE.saturating_sub(now.saturating_duration_since(since));
        match self {
            Self::Until(None) => None,
            Self::Until(Some(end)) => Some(end.saturating_duration_since(now).max(grace)),
            Self::WhileRead | Self::Brief => Some(grace),
        }
    }
}

/// When a machine is ended though its command has not.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When it was started.
    pub start: Instant,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// How long it may do nothing.
    pub idle_timeout: Option<Duration>,
}

impl Limits {
    /// How long it may still run; nothing if for ever.
    fn left(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.saturating_sub(self.start.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_ends_the_wait_for_who_reads_nothing_after_a_crash_too() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let limits = |timeout| Limits { start, timeout, idle_timeout: None };
        let crash = |timeout| Patience::after(Some(&Exit::Panicked), &limits(timeout));
        let patience = crash(Some(Duration::from_secs(20)));
        assert_eq!(patience.left(at(5), at(1)), Some(Duration::from_secs(15)));
        assert_eq!(patience.left(at(20), at(1)), Some(Duration::ZERO));
        assert_eq!(patience.left(at(30), at(30)), Some(GRACE), "something has just been read");
        assert_eq!(crash(None).left(at(1000), at(1)), None);
        assert_eq!(crash(Some(Duration::MAX)).left(at(1000), at(1)), None);
        let signal = Patience::after(Some(&Exit::Signal(15)), &limits(Some(Duration::from_secs(20))));
        assert_eq!(signal.left(at(2), at(1)), Some(Duration::ZERO));
    }
}
