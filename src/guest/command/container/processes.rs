//! The processes that join a container: started, fed and followed by what comes over one port.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::super::child::not_started;
use super::super::streams::{Ends, resize};
use super::{prepare, process};
use crate::host::lock::lock;
use crate::spec::frames::{CHUNK, Frame, Frames, GuestProcess, Kind, LONGEST_TO_GUEST, OWN, PIECE, Window};
use crate::spec::wire::{self, End};

/// How often a port is read that the host has not opened.
const TICK: Duration = Duration::from_millis(10);
/// How long the host may take to open the port, when the container ends: the monitor opens it before the guest boots.
const PATIENCE: Duration = Duration::from_secs(2);
/// As much of a program as is read to see what it is.
const HEAD: usize = 256;
/// How many signals and sizes wait for a process that is being started.
const MOST_EARLY: usize = 256;

/// The processes of a container.
#[derive(Clone)]
pub(super) struct Processes(Arc<Shared>);

struct Shared {
    /// Where frames go.
    port: Mutex<File>,
    /// The container's own process.
    own: Pid,
    /// It itself, whose PID namespace others join.
    namespace: OwnedFd,
    table: Mutex<Table>,
    /// Hears once the host knows that the container's own process is started.
    ready: Mutex<Receiver<()>>,
}

#[derive(Default)]
struct Table {
    joined: HashMap<u32, Joined>,
    /// How many processes are being started. Which are theirs of those that end meanwhile is not known yet.
    starting: usize,
}

/// A process that has joined, or is about to.
struct Joined {
    started: Option<Started>,
    /// Signals and sizes that came before it was started.
    early: Vec<Frame>,
    /// What is for its standard input, until that ends.
    stdin: Option<Sender<Vec<u8>>>,
    /// What may be sent of its outputs.
    windows: [Arc<Window>; 2],
    /// Gets how it ended.
    end: Sender<End>,
}

/// A process that is started.
struct Started {
    pid: Pid,
    terminal: Option<Arc<File>>,
}

impl Started {
    /// Does what a frame says to be done to it.
    fn take(&self, frame: &Frame) {
        let number = frame.as_number().unwrap_or_default();
        match (frame.kind, &self.terminal) {
            (Kind::Signal, _) => process::send_signal(self.pid, number as i32),
            (Kind::Resize, Some(terminal)) => resize(terminal, number as u16, (number >> 16) as u16),
            _ => {}
        }
    }
}

/// What carries a process's streams has of its place in the table.
struct Line {
    input: Receiver<Vec<u8>>,
    windows: [Arc<Window>; 2],
    ended: Receiver<End>,
}

/// What has become of a child that has ended.
pub(super) enum Reaped {
    /// It was the container's own process.
    Own(End),
    /// It was another one.
    Other,
    /// It waits, as it may be one that is being started.
    Nothing,
}

impl Processes {
    /// Serves `port` for the container whose own process is `own`.
    ///
    /// # Errors
    /// There is no thread or descriptor left.
    pub fn start(port: File, own: Pid) -> anyhow::Result<Self> {
        let reader = port.try_clone().context("cannot share a port")?;
        // Until it is waited for, there is one.
        let namespace = process::descriptor(own).context("the guest's kernel has no pidfd_open(2)")?;
        let (is_ready, ready) = channel();
        let ready = Mutex::new(ready);
        let shared = Shared { port: Mutex::new(port), own, namespace, table: Mutex::default(), ready };
        let this = Self(Arc::new(shared));
        let server = this.clone();
        let name = || thread::Builder::new().name("processes".to_owned());
        name().spawn(move || server.serve(reader)).context("cannot start a thread")?;
        let sender = this.clone();
        // It waits until the host has opened the port.
        let say = move || {
            sender.send(&Frame { kind: Kind::Ready, id: OWN, payload: Vec::new() });
            let _ = is_ready.send(());
        };
        name().spawn(say).context("cannot start a thread")?;
        Ok(this)
    }

    /// Waits until the host knows that the container's own process was started, if it listens at all.
    pub fn wait_until_ready(&self) {
        let _ = lock(&self.0.ready).recv_timeout(PATIENCE);
    }

    /// Reaps a child of this process that has ended, if it may be. While a process is being started, only those are reaped that
    /// are known: the standard library reaps a child that cannot become the program, and panics if another does.
    pub fn reap(&self) -> Reaped {
        let table = lock(&self.0.table);
        let started = |joined: &Joined| joined.started.as_ref().map(|started| started.pid);
        let reaped = if table.starting == 0 {
            process::reap(None)
        } else {
            let known = table.joined.values().filter_map(started);
            known.chain([self.0.own]).find_map(|pid| process::reap(Some(pid)))
        };
        let Some((pid, end)) = reaped else { return Reaped::Nothing };
        if pid == self.0.own {
            return Reaped::Own(end);
        }
        // What is not there was orphaned by another process.
        if let Some(joined) = table.joined.values().find(|joined| started(joined) == Some(pid)) {
            let _ = joined.end.send(end);
        }
        Reaped::Other
    }

    fn send(&self, frame: &Frame) {
        // Without kite there is no reader.
        let _ = lock(&self.0.port).write_all(&frame.encode());
    }

    fn serve(&self, mut port: File) {
        let mut frames = Frames::new(LONGEST_TO_GUEST);
        let mut buffer = vec![0; CHUNK];
        loop {
            let Ok(count @ 1..) = port.read(&mut buffer) else {
                sleep(TICK);
                continue;
            };
            let take = |frame| {
                self.take(frame);
                ControlFlow::Continue(())
            };
            // kite sends no nonsense.
            if frames.cut(&buffer[..count], take).is_err() {
                return;
            }
        }
    }

    fn take(&self, frame: Frame) {
        if frame.kind == Kind::Start {
            return self.begin(frame);
        }
        if let (Kind::Signal, OWN, Some(signal)) = (frame.kind, frame.id, frame.as_number()) {
            return process::send_signal(self.0.own, signal as i32);
        }
        let mut table = lock(&self.0.table);
        let Some(joined) = table.joined.get_mut(&frame.id) else { return };
        let number = frame.as_number().unwrap_or_default();
        match frame.kind {
            Kind::Stdin => _ = joined.stdin.as_ref().map(|stdin| stdin.send(frame.payload)),
            Kind::StdinEnd => joined.stdin = None,
            Kind::TakenStdout => joined.windows[0].give(number as usize),
            Kind::TakenStderr => joined.windows[1].give(number as usize),
            Kind::Signal | Kind::Resize => match &joined.started {
                Some(started) => started.take(&frame),
                None if joined.early.len() < MOST_EARLY => joined.early.push(frame),
                None => {}
            },
            Kind::Start | Kind::Ready | Kind::Stdout | Kind::Stderr | Kind::TakenStdin | Kind::Ended => {}
        }
    }

    fn report(&self, id: u32, end: End) {
        let mut payload = wire::encode(&end);
        // A reason that quotes a long name says enough at its beginning.
        if payload.len() > PIECE {
            payload = wire::encode(&End::Failed(
                "the process cannot be started, for a reason too long to say".to_owned(),
            ));
        }
        self.send(&Frame { kind: Kind::Ended, id, payload });
    }

    /// Has a process started by a thread of its own: a file system that does not answer holds up that alone.
    fn begin(&self, frame: Frame) {
        let ((stdin, input), (end, ended)) = (channel(), channel());
        let windows = [Arc::<Window>::default(), Arc::<Window>::default()];
        let (early, id) = (Vec::new(), frame.id);
        let joined = Joined { started: None, early, stdin: Some(stdin), windows: windows.clone(), end };
        lock(&self.0.table).joined.insert(id, joined);
        let (this, line) = (self.clone(), Line { input, windows, ended });
        let begin = move || {
            if let Err(error) = this.start_one(id, &frame.payload, line) {
                this.finish(id, End::Failed(format!("{error:#}")));
            }
        };
        if let Err(error) = thread::Builder::new().spawn(begin) {
            self.finish(id, End::Failed(format!("cannot start a thread: {error}")));
        }
    }

    /// Forgets a process, and says how it ended.
    fn finish(&self, id: u32, end: End) {
        lock(&self.0.table).joined.remove(&id);
        self.report(id, end);
    }

    /// Starts a process, and the threads that carry its streams.
    fn start_one(&self, id: u32, spec: &[u8], line: Line) -> anyhow::Result<()> {
        let spec: GuestProcess = serde_json::from_slice(spec).context("cannot read what is to be started")?;
        look_at_program(&spec);
        let (mut command, ends) = prepare(&spec)?;
        process::become_process(&mut command, &spec.process, spec.terminal.is_some());
        let namespace = self.0.namespace.try_clone().context("cannot share a PID namespace")?;
        lock(&self.0.table).starting += 1;
        // A thread that has joined a PID namespace can start no other thread.
        let started = thread::scope(|scope| {
            let spawn = || -> anyhow::Result<_> {
                setns(namespace, CloneFlags::CLONE_NEWPID).context("the container's process has ended")?;
                Ok(command.spawn())
            };
            let spawning =
                thread::Builder::new().spawn_scoped(scope, spawn).context("cannot start a thread")?;
            spawning.join().map_err(|_| anyhow!("a thread panicked"))?
        });
        let mut table = lock(&self.0.table);
        // In one step with its place in the table: before, it may have ended, and after, it may be reaped.
        table.starting -= 1;
        let child = match started? {
            Ok(child) => child,
            Err(error) => {
                drop(table);
                self.finish(id, not_started(&spec.argv[0], &error));
                return Ok(());
            }
        };
        if let Some(joined) = table.joined.get_mut(&id) {
            let started = Started { pid: Pid::from_raw(child.id() as i32), terminal: ends.terminal.clone() };
            joined.early.drain(..).for_each(|frame| started.take(&frame));
            joined.started = Some(started);
        }
        drop(table);
        self.carry(id, ends, line)
    }

    fn carry(&self, id: u32, ends: Ends, line: Line) -> anyhow::Result<()> {
        let Line { input, windows, ended } = line;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("cannot make an eventfd")?;
        let stop = Arc::new(stop);
        let mut outputs: Vec<JoinHandle<()>> = Vec::new();
        for ((from, kind), window) in ends.outputs.into_iter().zip([Kind::Stdout, Kind::Stderr]).zip(windows)
        {
            let Some(from) = from else { continue };
            let (this, stop) = (self.clone(), stop.clone());
            let carry = move || this.carry_output(id, kind, File::from(from), &window, &stop);
            outputs.push(thread::Builder::new().spawn(carry).context("cannot start a thread")?);
        }
        let this = self.clone();
        let feed = move || this.carry_input(id, &input, ends.stdin);
        thread::Builder::new().spawn(feed).context("cannot start a thread")?;
        let this = self.clone();
        let follow = move || {
            let Ok(end) = ended.recv() else { return };
            let _ = stop.write(1);
            outputs.into_iter().for_each(|output| _ = output.join());
            this.finish(id, end);
        };
        thread::Builder::new().spawn(follow).map(drop).context("cannot start a thread")
    }

    /// Carries an output to its end, or until `stop` and there is no more for now.
    fn carry_output(&self, id: u32, kind: Kind, mut from: File, window: &Window, stop: &EventFd) {
        let mut buffer = vec![0; PIECE];
        loop {
            let most = window.wait().min(PIECE);
            let mut fds =
                [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            let polled = poll(&mut fds, PollTimeout::NONE);
            let (ready, stopped) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
            if polled.is_err() {
                continue;
            }
            if stopped && !ready {
                return;
            }
            // A terminal without any process reads as EIO.
            let Ok(count @ 1..) = from.read(&mut buffer[..most]) else { return };
            window.take(count);
            self.send(&Frame { kind, id, payload: buffer[..count].to_vec() });
        }
    }

    /// Feeds standard input until it ends, or has no reader.
    fn carry_input(&self, id: u32, input: &Receiver<Vec<u8>>, to: OwnedFd) {
        let mut to = Some(File::from(to));
        for piece in input {
            // Input without a reader is taken, too: its sender does not wait.
            if to.as_mut().is_some_and(|file| file.write_all(&piece).is_err()) {
                to = None;
            }
            self.send(&Frame::number(Kind::TakenStdin, id, piece.len() as u32));
        }
    }
}

/// Looks at a process's program as the kernel will. Where its file system does not answer, this thread waits, and not a child,
/// which would have a copy of all that is open here, other processes' streams among it.
fn look_at_program(spec: &GuestProcess) {
    let Some(program) = spec.argv.first() else { return };
    let places = match program.as_bytes().contains(&b'/') {
        true => vec![Path::new(&spec.cwd).join(program)],
        false => {
            let path = spec.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
            std::env::split_paths(path.unwrap_or_default()).map(|folder| folder.join(program)).collect()
        }
    };
    // What opening a device does is its program's affair.
    let is_file = |place: &&PathBuf| place.metadata().is_ok_and(|found| found.is_file());
    if let Some(file) = places.iter().find(is_file).and_then(|place| File::open(place).ok()) {
        let _ = (&file).read(&mut [0; HEAD]);
    }
}

#[cfg(test)]
mod tests;
