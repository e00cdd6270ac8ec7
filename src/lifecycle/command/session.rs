//! The main thread while the command runs: hears what the guest reports, passes on what the user does, and sees to the
//! limits of time.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use devices::virtio::console::Port;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::kernel_log::KernelLog;
use super::streams::{InputStream, News, OutputStream, Tee, Wake, Word};
use crate::host::messages;
use crate::host::signals::{self, Signals};
use crate::host::terminal::{self, RawTerminal};
use crate::observe::crash::watchdog::{self, Verdict, Watch};
use crate::observe::trace::{Mark, Timeline};
use crate::sandbox;
use crate::spec::task::{self, CONTROL, End, Messages, Order, Output, Report};
use crate::vcpu::stop::Exit;
use crate::vm::machine::Running;

/// How long what the guest says it has written may take to arrive, while nothing stands in its way.
const ARRIVAL: Duration = Duration::from_secs(2);
/// How long readers that do not read may hold up the end of a kite that is to end at once.
const GRACE: Duration = Duration::from_secs(1);
/// How often something that has no event is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How many bytes wait for a guest that does not listen; more are news of a terminal that comes and goes.
const ORDERS_MAX: usize = 4096;

/// How many lacks the user hears of: a guest may make up any number.
const LACKS_MAX: usize = 10;

/// A command's session. It lasts as long as its one machine.
pub(super) struct Session {
    signals: Signals,
    pub log: KernelLog,
    stdin: Arc<InputStream>,
    outputs: [Arc<OutputStream>; 2],
    control: Arc<Port>,
    word: Arc<Word>,
    messages: Messages,
    orders: Vec<u8>,
    /// How the command ended, once that is known, and when something arrived last.
    ended: Option<(End, Instant)>,
    arrived: u64,
    /// How often the guest has said that it lacks something.
    lacks: usize,
    terminal: Option<task::Terminal>,
    timeline: Arc<Timeline>,
}

impl Session {
    /// At the process's `signals`.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn new(
        signals: Signals,
        terminal: Option<task::Terminal>,
        log: KernelLog,
        timeline: Arc<Timeline>,
    ) -> anyhow::Result<Self> {
        let wake = Wake::new()?;
        let control = wake.port(CONTROL)?;
        let [stdout, stderr] = Output::ALL.map(OutputStream::new);
        Ok(Self {
            signals,
            log,
            stdin: InputStream::new()?,
            outputs: [stdout?, stderr?],
            control,
            word: Word::new(wake),
            messages: Messages::default(),
            orders: Vec::new(),
            ended: None,
            arrived: 0,
            lacks: 0,
            terminal,
            timeline,
        })
    }

    /// The guest's ports to this session.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        let [stdout, stderr] = &self.outputs;
        vec![self.control.clone(), self.stdin.port.clone(), stdout.port.clone(), stderr.port.clone()]
    }

    /// Lets the guest begin, and attends the machine until it is asked to stop, for the command's end or another reason; it still runs then.
    ///
    /// # Errors
    /// The host refuses a thread, or the terminal its setting.
    pub fn attend(&mut self, machine: &Running, limits: &Limits, tee: Option<Tee>) -> anyhow::Result<()> {
        let raw = match self.terminal {
            Some(_) => RawTerminal::new()?,
            None => None,
        };
        messages::start()?;
        self.log.start(machine.serial().clone(), self.word.wake.clone())?;
        let [stdout, stderr] = &self.outputs;
        stdout.start(self.word.clone(), tee, self.timeline.clone())?;
        stderr.start(self.word.clone(), None, self.timeline.clone())?;
        self.stdin.start(self.word.clone(), raw.is_some())?;
        sandbox::close();
        machine.release();
        let waited = self.wait(machine, limits);
        self.stdin.stop();
        waited
    }

    fn wait(&mut self, machine: &Running, limits: &Limits) -> anyhow::Result<()> {
        let exit = machine.exit();
        let mut watch = Watch::new(limits.idle_timeout);
        while exit.reason().is_none() {
            let mut fds = [
                PollFd::new(exit.event(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.word.wake.event(), PollFlags::POLLIN),
            ];
            let timeout = match self.ended {
                Some(_) => Some(TICK),
                None => Some(limits.left().unwrap_or(watchdog::INTERVAL).min(watchdog::INTERVAL)),
            };
            match poll(&mut fds, rounded_up(timeout)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(anyhow!(error).context("cannot wait for the guest")),
            }
            let signalled = fds[1].any() == Some(true);
            self.word.wake.heard();
            if signalled {
                self.take_signal(machine);
            }
            self.hear();
            self.take_news(machine);
            self.send();
            if let Some(end) = self.whole_end() {
                exit.request(Exit::Command(end));
            } else if limits.left() == Some(Duration::ZERO) {
                exit.request(Exit::TimedOut);
            }
            self.watch(&mut watch, machine, limits);
        }
        Ok(())
    }

    /// Looks whether the guest is still there.
    fn watch(&self, watch: &mut Watch, machine: &Running, limits: &Limits) {
        match watch.check(machine, self.progress() + self.log.progress(), self.log.panic_seen()) {
            Verdict::Alive => {}
            Verdict::Dead(why) => machine.exit().request(why),
            Verdict::Idle => machine.exit().request(Exit::Idle(limits.idle_timeout.unwrap_or_default())),
        }
    }

    /// Hears the guest's reports.
    fn hear(&mut self) {
        let mut bytes = Vec::new();
        self.control.take_output(&mut bytes);
        let (outputs, stdin, ended) = (&self.outputs, &self.stdin, &mut self.ended);
        let (timeline, lacks) = (&self.timeline, &mut self.lacks);
        self.messages.feed(&bytes, |report| match report {
            Report::Lacks(what) => {
                if *lacks < LACKS_MAX {
                    terminal::tell(&what);
                }
                *lacks = lacks.saturating_add(1);
            }
            Report::Started => timeline.mark(Mark::CommandStart),
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
    fn whole_end(&mut self) -> Option<End> {
        let (end, since) = self.ended.as_mut()?;
        let progress = self.outputs.iter().map(|output| output.progress());
        let (arrived, writing) = progress.fold((0, false), |sum, it| (sum.0 + it.0, sum.1 || it.1));
        if arrived != self.arrived || writing {
            (self.arrived, *since) = (arrived, Instant::now());
        }
        let whole = self.outputs.iter().all(|output| output.has_ended());
        (whole || since.elapsed() > ARRIVAL).then(|| end.clone())
    }

    fn take_news(&mut self, machine: &Running) {
        for news in self.word.take() {
            match news {
                News::Unread(output) => self.order(&Order::HangUp(output)),
                News::Quit => machine.exit().request(Exit::Quit),
            }
        }
    }

    fn take_signal(&mut self, machine: &Running) {
        let Some(signal) = self.signals.next() else { return };
        if signal == Signal::SIGWINCH as i32 {
            let (columns, rows) = terminal::size();
            self.order(&Order::Resize { columns, rows });
        } else if signal != Signal::SIGIO as i32 {
            machine.exit().request(Exit::Signal(signal));
        } else if let Err(error) = machine.detach_files() {
            let error = anyhow!(error).context("cannot keep a copy of a file that is about to change");
            machine.exit().request(Exit::Failed(error));
        }
    }

    fn order(&mut self, order: &Order) {
        let message = task::encode(order);
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

    /// Writes what is left of the command's outputs and the kernel's messages, of a machine that has stopped. A signal
    /// cuts it short, and is returned: kite must not hang on a reader that does not read. Nor must one that was told to end,
    /// or whose time is over: that is what `patience` says.
    ///
    /// # Errors
    /// The host refuses to wait.
    pub fn finish(&mut self, machine: &Running, patience: Patience) -> anyhow::Result<Option<i32>> {
        terminal::restore();
        self.outputs.iter().for_each(|output| output.close());
        self.log.close();
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
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.word.wake.event(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, rounded_up(left)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the last of the output"),
            }
            self.word.wake.heard();
            if let Some(signal) = self.ending_signal(machine) {
                return Ok(Some(signal));
            }
        }
        Ok(None)
    }

    /// Waits until the user has what kite had to say, as [`Self::finish`] does for what the guest had.
    pub fn flush(&self, machine: &Running, patience: Patience) -> Option<i32> {
        let mut signal = None;
        messages::flush(|stuck| {
            signal = self.ending_signal(machine);
            let now = Instant::now();
            let left = now.checked_sub(stuck).and_then(|since| patience.left(now, since));
            signal.is_some() || left == Some(Duration::ZERO)
        });
        signal
    }

    /// The signal that tells kite to end, if one has come.
    fn ending_signal(&self, machine: &Running) -> Option<i32> {
        while let Some(signal) = self.signals.next() {
            match signal {
                // Somebody wants to write to a file that the guest was loaded from, and need not wait for this. A copy that
                // cannot be made is one that nobody runs from.
                _ if signal == Signal::SIGIO as i32 => _ = machine.detach_files(),
                _ if signals::is_news(signal) => {}
                _ => return Some(signal),
            }
        }
        None
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

    /// What has passed between the command and the outside world, in bytes.
    fn progress(&self) -> u64 {
        self.outputs.iter().map(|output| output.progress().0).sum::<u64>() + self.stdin.progress()
    }
}

/// How long the end of kite waits for who reads its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
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
    pub fn after(reason: Option<&Exit>, limits: &Limits) -> Self {
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
pub(super) struct Limits {
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

/// For poll(2): a wait that is a little short would be repeated without rest until the time is there.
fn rounded_up(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else { return PollTimeout::NONE };
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
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
