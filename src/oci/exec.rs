//! `exec`: another process in a container, whose streams, terminal and status are this process's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::setsid;

use super::config::{self, Config, Process};
use super::protocol::{self, Request};
use super::state::{Folder, Status};
use super::{console, convert, this_program};
use crate::host::atomic_file;
use crate::host::exit_code::{FAILED, NOT_EXECUTABLE, NOT_FOUND, of_signal};
use crate::host::lock::lock;
use crate::host::messages;
use crate::host::terminal::{self, RawTerminal};
use crate::spec::frames::{
    Frame, Frames, GuestProcess, Kind, LONGEST_FROM_GUEST, OWN, PIECE, WINDOW, Window,
};
use crate::spec::wire::{End, Terminal};

/// How often something is looked at that does not report.
const TICK: Duration = Duration::from_millis(2);

/// The process that a document or the words of a command line describe, in a container as its bundle has it.
///
/// # Errors
/// There is no such container, it does not run, or the document makes no sense.
pub fn process(folder: &Folder, document: Option<Process>, words: Words) -> anyhow::Result<GuestProcess> {
    let record = folder.record()?;
    if record.status != Status::Running {
        bail!("container is not running: it is {}", record.status.name());
    }
    let process = match document {
        Some(process) => process,
        None => {
            let own = Config::of_bundle(&record.bundle)?.process.context("config.json has no process")?;
            words.over(own)
        }
    };
    let size = || {
        let (columns, rows) = terminal::size();
        Terminal { columns, rows, stderr: true }
    };
    // The last of a name counts, as for any program.
    let env: BTreeMap<_, _> =
        convert::environment(&process).into_iter().filter_map(|it| Some((it.name, it.value?))).collect();
    Ok(GuestProcess {
        argv: process.args.iter().map(Into::into).collect(),
        env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cwd: process.cwd.clone().into(),
        process: convert::process_spec(&process)?,
        terminal: process.terminal.then(size),
    })
}

/// What a command line says of a process.
#[derive(Debug, Default)]
pub struct Words {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The folder to start in.
    pub cwd: Option<std::path::PathBuf>,
    /// Variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// The user's and the group's numbers.
    pub user: Option<(u32, Option<u32>)>,
    /// It has a terminal.
    pub terminal: bool,
}

impl Words {
    /// The container's own process with these words instead.
    fn over(self, own: Process) -> Process {
        let mut process = Process { args: self.args, terminal: self.terminal, ..own };
        process.cwd = self.cwd.unwrap_or(process.cwd);
        process.env.extend(self.env);
        if let Some((uid, gid)) = self.user {
            (process.user.uid, process.user.gid) = (uid, gid.unwrap_or(process.user.gid));
        }
        process
    }
}

/// Starts a process that does what [`carry`] does, in a session and with a terminal of its own if there is a `console`.
///
/// # Errors
/// The host has no process or room left.
pub fn detached(
    root: &Path,
    id: &str,
    process: &GuestProcess,
    console: Option<&Path>,
) -> anyhow::Result<Child> {
    let folder = Folder::open(root, id)?;
    let name = format!("join-{}", std::process::id());
    // The engine's own file may be gone when it is read.
    let json = serde_json::to_vec(process).context("a process cannot be written as JSON")?;
    atomic_file::write(&folder.path.join(&name), |file| file.write_all(&json))?;
    let mut command = this_program(root);
    command.args(["join", id, &name]);
    command.args(console.into_iter().flat_map(|socket| [Path::new("--console-socket"), socket]));
    let mut child = command.spawn().context("cannot start a process")?;
    // The engine looks for the terminal once this process has ended. What fails meanwhile says why itself.
    while folder.path.join(&name).exists() && child.try_wait()?.is_none() {
        thread::sleep(TICK);
    }
    Ok(child)
}

/// Does what a process from [`detached`] does; answers the status.
///
/// # Errors
/// Those of [`carry`], or no engine listens at `console`.
pub fn join(root: &Path, id: &str, name: &str, console: Option<&Path>) -> anyhow::Result<u8> {
    let folder = Folder::open(root, id)?;
    ensure!(name.starts_with("join-") && !name.contains('/'), "'{name}' is no file of a container's folder");
    let path = folder.path.join(name);
    let mut process: GuestProcess = config::read(&path)?;
    if let Some(socket) = console {
        setsid().context("cannot begin a session")?;
        console::take(socket).with_context(|| format!("cannot use console socket {}", socket.display()))?;
        if let Some(terminal) = &mut process.terminal {
            (terminal.columns, terminal.rows) = terminal::size();
        }
    }
    // It says that there is a terminal.
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    carry(&folder, process)
}

/// The status that a process of [`detached`] ends with.
///
/// # Errors
/// It cannot be waited for.
pub fn status(mut child: Child) -> anyhow::Result<u8> {
    Ok(child.wait().context("cannot wait for a process")?.code().map_or(FAILED, |code| code as u8))
}

/// What is on its way.
struct Room {
    /// The window of standard input.
    input: Window,
    /// How many bytes of outputs have come and are not written.
    held: AtomicUsize,
}

/// Runs a process in the container with the streams of this one; answers its status.
///
/// # Errors
/// The container does not run, or ends.
pub fn carry(folder: &Folder, process: GuestProcess) -> anyhow::Result<u8> {
    let has_terminal = process.terminal.is_some() && io::stdin().is_terminal();
    let raw = if has_terminal { RawTerminal::new()? } else { None };
    // Before there are threads, which would take the signal.
    let sizes = has_terminal.then(sizes).transpose()?;
    let stream = protocol::ask(folder, &Request::Exec(Box::new(process)))?;
    stream.set_read_timeout(None)?;
    let sender = Arc::new(Mutex::new(stream.try_clone()?));
    let room = Arc::new(Room { input: Window::default(), held: AtomicUsize::new(0) });
    let (input, given) = (sender.clone(), room.clone());
    thread::Builder::new().spawn(move || feed(&input, &given)).context("cannot start a thread")?;
    if let Some(sizes) = sizes {
        let resized = sender.clone();
        thread::Builder::new().spawn(move || resize(&resized, &sizes)).context("cannot start a thread")?;
    }
    let (frames, coming) = channel();
    // What comes is taken from the socket at once: its sender serves others, too.
    let received = room.clone();
    let receive = move || receive(stream, &received, &frames);
    thread::Builder::new().spawn(receive).context("cannot start a thread")?;
    let end = follow(&coming, &sender, &room);
    drop(raw);
    terminal::restore();
    code(end?)
}

fn send(stream: &Mutex<UnixStream>, frame: &Frame) -> io::Result<()> {
    lock(stream).write_all(&frame.encode())
}

/// Becomes readable when the terminal has another size.
fn sizes() -> anyhow::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.thread_block().context("cannot block a signal")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("cannot make a signalfd")
}

/// Sends the terminal's size, now, as it may have changed meanwhile, and whenever it has changed.
fn resize(stream: &Mutex<UnixStream>, sizes: &SignalFd) {
    loop {
        let (columns, rows) = terminal::size();
        let size = u32::from(columns) | u32::from(rows) << 16;
        if send(stream, &Frame::number(Kind::Resize, OWN, size)).is_err() || sizes.read_signal().is_err() {
            return;
        }
    }
}

/// Sends standard input, as fast as it is taken.
fn feed(stream: &Mutex<UnixStream>, room: &Room) {
    let mut buffer = vec![0; PIECE];
    loop {
        let most = room.input.wait().min(PIECE);
        match io::stdin().read(&mut buffer[..most]) {
            Ok(count @ 1..) => {
                room.input.take(count);
                let frame = Frame { kind: Kind::Stdin, id: OWN, payload: buffer[..count].to_vec() };
                if send(stream, &frame).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => {
                let _ = send(stream, &Frame { kind: Kind::StdinEnd, id: OWN, payload: Vec::new() });
                return;
            }
        }
    }
}

fn receive(stream: UnixStream, room: &Room, to: &Sender<Frame>) {
    let take = |frame: Frame| {
        if frame.kind == Kind::TakenStdin {
            room.input.give(frame.as_number().unwrap_or_default() as usize);
            return ControlFlow::Continue(());
        }
        // Of a guest that sends more than it may, no more is taken.
        let held = room.held.fetch_add(weight(&frame), Ordering::SeqCst);
        if held > 2 * WINDOW || to.send(frame).is_err() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    // A guest that makes no sense is one that has ended: nothing more comes.
    let _ = Frames::new(LONGEST_FROM_GUEST).read(stream, take);
}

/// What a frame counts for among those that are held.
fn weight(frame: &Frame) -> usize {
    frame.payload.len().max(1)
}

/// Writes what comes until the process has ended. Output without a reader is taken, too.
fn follow(coming: &Receiver<Frame>, sender: &Mutex<UnixStream>, room: &Room) -> anyhow::Result<End> {
    for frame in coming {
        let taken = match frame.kind {
            Kind::Stdout => {
                let mut stdout = io::stdout().lock();
                let _ = stdout.write_all(&frame.payload).and_then(|()| stdout.flush());
                Kind::TakenStdout
            }
            Kind::Stderr => {
                let _ = io::stderr().write_all(&frame.payload);
                Kind::TakenStderr
            }
            Kind::Ended => {
                return serde_json::from_slice(&frame.payload)
                    .map_err(|_| anyhow!("the guest makes no sense"));
            }
            _ => continue,
        };
        room.held.fetch_sub(weight(&frame), Ordering::SeqCst);
        let _ = send(sender, &Frame::number(taken, OWN, frame.payload.len() as u32));
    }
    bail!("the container has ended")
}

fn code(end: End) -> anyhow::Result<u8> {
    Ok(match end {
        End::Exited(code) => code,
        End::Signalled(signal) => of_signal(signal),
        End::NotFound(why) => complained(&why, NOT_FOUND),
        End::NotExecutable(why) => complained(&why, NOT_EXECUTABLE),
        End::Failed(why) => complained(&why, FAILED),
    })
}

fn complained(why: &str, code: u8) -> u8 {
    messages::complain(why);
    code
}
