//! What the user wants to know of a run: its statistics and its trace. They are collected whatever happens to the guest,
//! on a thread of their own while it runs, and reported when the machine has stopped.

use std::os::fd::AsFd;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use devices::screen::Surface;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signalfd::SignalFd;

use crate::backend::screen::Display;
use crate::host::atomic_file;
use crate::host::event::awaited_event;
use crate::host::exit_code;
use crate::host::signals;
use crate::host::terminal;
use crate::host::thread::{self, ThreadKind};
use crate::observe::screenshot;
use crate::observe::stats::Stats;
use crate::observe::trace::{Mark, Samples, Timeline};
use crate::session::Outcome;
use crate::spec::MeasureSpec;
use crate::vm::machine::Machine;

/// The thread's stack in bytes; the host gives what is touched of it.
const STACK: usize = 256 << 10;

/// Everything that is measured of a run.
pub(super) struct Measurements {
    /// Where statistics go, if they are wanted.
    target: Option<Arc<Target>>,
    interval: Option<Duration>,
    /// Where the trace goes; nothing once it is written.
    trace: Option<PathBuf>,
    timeline: Arc<Timeline>,
    questions: Option<Arc<SignalFd>>,
    watch: Option<Watch>,
}

/// Where statistics go.
enum Target {
    Stderr,
    File(PathBuf),
}

impl Target {
    fn of(path: Option<PathBuf>) -> Self {
        path.map_or(Self::Stderr, Self::File)
    }

    fn tell(&self, stats: &Stats, finished: bool) -> anyhow::Result<()> {
        let report = stats.report();
        match self {
            Self::Stderr => terminal::lines(&report.to_string()),
            Self::File(path) => write(path, &report.to_json(finished))?,
        }
        Ok(())
    }
}

fn write(path: &Path, json: &serde_json::Value) -> anyhow::Result<()> {
    atomic_file::write(path, |file| {
        let mut text = serde_json::to_vec_pretty(json)?;
        text.push(b'\n');
        file.write_all(&text)
    })
}

impl Measurements {
    /// Looks at what is wanted; to be called before there is a second thread, and before signals are taken over. `begun`
    /// is when kite began.
    ///
    /// # Errors
    /// A file cannot be written, or the host refuses a descriptor.
    pub fn open(spec: &MeasureSpec, begun: Instant) -> anyhow::Result<Self> {
        let stats = || spec.stats.iter().filter_map(|stats| stats.file.as_ref());
        let picture = &spec.screenshot_on_failure;
        stats().try_for_each(|path| atomic_file::expect(path)).context("--stats")?;
        spec.trace.iter().try_for_each(|path| atomic_file::expect(path)).context("--trace")?;
        picture.iter().try_for_each(|path| atomic_file::expect(path)).context("--screenshot-on-failure")?;
        let files =
            stats().map(|path| ("--stats", path)).chain(spec.trace.iter().map(|path| ("--trace", path)));
        let files = files.chain(picture.iter().map(|path| ("--screenshot-on-failure", path)));
        let names: Vec<_> =
            files.filter_map(|(option, path)| Some((option, path::absolute(path).ok()?))).collect();
        for (at, (option, path)) in names.iter().enumerate() {
            if let Some((other, _)) = names[..at].iter().find(|(_, other)| other == path) {
                bail!("{other} and {option} name one file: {}", path.display());
            }
        }
        let target = spec.stats.as_ref().map(|stats| Target::of(stats.file.clone()));
        let questions = target.as_ref().map(|_| signals::take_questions()).transpose()?;
        let timeline = Timeline::new(begun);
        timeline.note("parse options", begun);
        Ok(Self {
            target: target.map(Arc::new),
            interval: spec.stats.as_ref().and_then(|stats| stats.interval),
            trace: spec.trace.clone(),
            timeline: Arc::new(timeline),
            questions: questions.map(Arc::new),
            watch: None,
        })
    }

    /// Whether anybody reads them.
    pub fn are_read(&self) -> bool {
        self.target.is_some() || self.trace.is_some()
    }

    /// Where phases and marks are noted.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Has `machine`, which has not started, measured if that is wanted.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn watch(&mut self, machine: &mut Machine) -> anyhow::Result<()> {
        if self.target.is_none() && self.trace.is_none() {
            return Ok(());
        }
        let stats = Stats::measure(machine);
        if self.trace.is_some() {
            self.timeline.watch(stats.clone());
        }
        let looks = Looks {
            stats,
            target: self.target.clone(),
            questions: self.questions.clone(),
            interval: self.interval,
            samples: self.trace.is_some().then(Samples::default),
        };
        self.watch = Some(Watch::start(looks)?);
        Ok(())
    }

    /// Reports what was found out about the machine, which has stopped.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn report(&mut self) -> anyhow::Result<()> {
        let Some(watch) = self.watch.take() else { return Ok(()) };
        self.timeline.mark(Mark::Exit);
        let Looks { stats, samples, .. } = watch.stop();
        let told = self.target.as_ref().map_or(Ok(()), |target| target.tell(&stats, true));
        // Only the first boot's: the next is like it.
        if let Some(path) = self.trace.take() {
            write(&path, &self.timeline.to_json(&samples.unwrap_or_default()))?;
        }
        told
    }
}

/// What a picture is taken of where a run fails: the screen as its last machine has left it.
#[derive(Default)]
pub(super) struct LastLook(Option<Arc<Surface>>);

impl LastLook {
    /// Looks at a machine that has stopped.
    pub fn look(&mut self, display: Option<&Display>) {
        self.0 = display.map(|display| display.screen().surface());
    }

    /// Writes what was there into `file`, if a run with this outcome has failed; answers whether it did.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take_picture(self, outcome: &anyhow::Result<Outcome>, file: &Path) -> anyhow::Result<bool> {
        let has_failed = match outcome {
            Ok(outcome) => outcome.code != exit_code::DONE || outcome.signal.is_some(),
            Err(_) => true,
        };
        match self.0.filter(|_| has_failed) {
            Some(surface) => screenshot::write(&surface, file).map(|()| true),
            None => Ok(false),
        }
    }
}

/// The thread that looks while the guest runs. Dropping it ends it.
struct Watch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Looks>>,
}

impl Watch {
    fn start(mut looks: Looks) -> anyhow::Result<Self> {
        let stop = Arc::new(awaited_event()?);
        let event = stop.clone();
        let thread = thread::spawn("stats", STACK, ThreadKind::Io, move || {
            looks.run(&event);
            looks
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    fn stop(mut self) -> Looks {
        self.end().expect("it is ended once, and a panic ends the process")
    }

    fn end(&mut self) -> Option<Looks> {
        // The counter cannot be full: it is written once.
        let _ = self.stop.write(1);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the thread looks at, and when.
struct Looks {
    stats: Arc<Stats>,
    target: Option<Arc<Target>>,
    questions: Option<Arc<SignalFd>>,
    interval: Option<Duration>,
    samples: Option<Samples>,
}

impl Looks {
    fn run(&mut self, stop: &EventFd) {
        let mut due = self.due(Instant::now());
        loop {
            let next = due.into_iter().chain(self.samples.as_ref().map(Samples::next)).min();
            let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.questions.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
            // A wait that ends early, as by a signal, only means another look.
            let _ = poll(&mut fds, until(next));
            if fds[0].any() == Some(true) {
                return;
            }
            let now = Instant::now();
            if let Some(samples) = &mut self.samples {
                samples.look(now, &self.stats);
            }
            let asked = self.questions.as_ref().is_some_and(|it| matches!(it.read_signal(), Ok(Some(_))));
            let is_due = due.is_some_and(|due| due <= now);
            if is_due {
                due = self.due(now);
            }
            if asked || is_due {
                self.tell();
            }
        }
    }

    /// When to tell again; never where no clock gets to.
    fn due(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.interval?)
    }

    fn tell(&self) {
        let Some(target) = &self.target else { return };
        if let Err(error) = target.tell(&self.stats, false) {
            terminal::tell(&format!("{error:#}"));
        }
    }
}

/// How long to wait until then, rounded up: a wait that is a little short would be repeated without rest.
fn until(next: Option<Instant>) -> PollTimeout {
    let Some(next) = next else { return PollTimeout::NONE };
    let left = next.saturating_duration_since(Instant::now());
    let milliseconds = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
    PollTimeout::try_from(milliseconds as i32).unwrap_or(PollTimeout::MAX)
}
