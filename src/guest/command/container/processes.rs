//! The processes that join a container: started, fed and followed by what comes over one port.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
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
    table: Mutex<HashMap<u32, Joined>>,
}

/// A process that has joined.
struct Joined {
    pid: Pid,
    /// What is for its standard input, until that ends.
    stdin: Option<Sender<Vec<u8>>>,
    /// What may be sent of its outputs.
    windows: [Arc<Window>; 2],
    /// Gets how it ended.
    end: Sender<End>,
    terminal: Option<Arc<File>>,
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
        let shared = Shared { port: Mutex::new(port), own, namespace, table: Mutex::default() };
        let this = Self(Arc::new(shared));
        let server = this.clone();
        let name = || thread::Builder::new().name("processes".to_owned());
        name().spawn(move || server.serve(reader)).context("cannot start a thread")?;
        let sender = this.clone();
        // It waits until the host has opened the port.
        let ready = move || sender.send(&Frame { kind: Kind::Ready, id: OWN, payload: Vec::new() });
        name().spawn(ready).context("cannot start a thread")?;
        Ok(this)
    }

    /// Reaps a child of this process that has ended, if there is one. While a process is being started there is none: the
    /// standard library reaps a child that cannot become the program, and panics if another does.
    pub fn reap(&self) -> Option<(Pid, End)> {
        let table = lock(&self.0.table);
        let (pid, end) = process::reap()?;
        // What is not there is the container's own, or was orphaned by another process.
        if let Some(joined) = table.values().find(|joined| joined.pid == pid) {
            let _ = joined.end.send(end.clone());
        }
        Some((pid, end))
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
            if let Err(error) = self.begin(frame.id, &frame.payload) {
                self.report(frame.id, End::Failed(format!("{error:#}")));
            }
            return;
        }
        if let (Kind::Signal, OWN, Some(signal)) = (frame.kind, frame.id, frame.as_number()) {
            return process::send_signal(self.0.own, signal as i32);
        }
        let mut table = lock(&self.0.table);
        let Some(joined) = table.get_mut(&frame.id) else { return };
        let number = frame.as_number().unwrap_or_default();
        match frame.kind {
            Kind::Stdin => _ = joined.stdin.as_ref().map(|stdin| stdin.send(frame.payload)),
            Kind::StdinEnd => joined.stdin = None,
            Kind::TakenStdout => joined.windows[0].give(number as usize),
            Kind::TakenStderr => joined.windows[1].give(number as usize),
            Kind::Signal => process::send_signal(joined.pid, number as i32),
            Kind::Resize => {
                if let Some(terminal) = &joined.terminal {
                    resize(terminal, number as u16, (number >> 16) as u16);
                }
            }
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

    /// Starts a process, and the threads that carry its streams.
    fn begin(&self, id: u32, spec: &[u8]) -> anyhow::Result<()> {
        let spec: GuestProcess = serde_json::from_slice(spec).context("cannot read what is to be started")?;
        let (mut command, ends) = prepare(&spec)?;
        process::become_process(&mut command, &spec.process, spec.terminal.is_some());
        let namespace = self.0.namespace.try_clone().context("cannot share a PID namespace")?;
        // Before it can have ended, it is in the table.
        let mut table = lock(&self.0.table);
        let started = thread::spawn(move || -> anyhow::Result<_> {
            setns(namespace, CloneFlags::CLONE_NEWPID).context("the container's process has ended")?;
            Ok(command.spawn())
        });
        let child = match started.join().map_err(|_| anyhow!("a thread panicked"))?? {
            Ok(child) => child,
            Err(error) => {
                drop(table);
                self.report(id, not_started(&spec.argv[0], &error));
                return Ok(());
            }
        };
        let (stdin, input) = channel();
        let (end, ended) = channel();
        let windows = [Arc::<Window>::default(), Arc::<Window>::default()];
        let joined = Joined {
            pid: Pid::from_raw(child.id() as i32),
            stdin: Some(stdin),
            windows: windows.clone(),
            end,
            terminal: ends.terminal.clone(),
        };
        table.insert(id, joined);
        drop(table);
        self.carry(id, ends, input, windows, ended)
    }

    fn carry(
        &self,
        id: u32,
        ends: Ends,
        input: Receiver<Vec<u8>>,
        windows: [Arc<Window>; 2],
        ended: Receiver<End>,
    ) -> anyhow::Result<()> {
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
            lock(&this.0.table).remove(&id);
            this.report(id, end);
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
