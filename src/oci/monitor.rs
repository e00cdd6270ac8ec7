//! A container's monitor: the process whose number engines know. It waits for `start`, runs the machine as a child, passes
//! on what is asked of it, and ends as the container does.

use std::collections::HashMap;
use std::io::Write;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, setsid};

use super::protocol::{self, PATIENCE, Reply, Request};
use super::state::{FAILURE, Folder, PROCESSES, Status};
use super::{console, network, this_program};
use crate::host::exit_code::{FAILED, NOT_EXECUTABLE, NOT_FOUND, of_signal};
use crate::host::lock::lock;
use crate::host::messages;
use crate::sandbox;
use crate::spec::frames::{Frame, Frames, GuestProcess, Kind, LONGEST_FROM_GUEST, OWN};

/// How long a machine that was killed may take to clean up after itself.
const GRACE: Duration = Duration::from_secs(3);
/// How often something is looked at that does not report.
const TICK: Duration = Duration::from_millis(5);
/// How long a process's reader may not read: what it has not taken is bounded, and waits with it.
const STUCK: Duration = Duration::from_secs(5);
/// How many may ask at once.
const MOST_CLIENTS: usize = 1024;

/// What a monitor is started with.
pub struct Options<'a> {
    /// Where containers are.
    pub root: &'a Path,
    /// Which this is.
    pub id: &'a str,
    /// Where the engine waits for the container's terminal.
    pub console: Option<&'a Path>,
    /// It stays in its caller's session.
    pub foreground: bool,
    /// The network namespace that it joins.
    pub network: Option<&'a Path>,
    /// It makes a network namespace of its own.
    pub own_network: bool,
}

/// Runs the monitor to the container's end; answers the container's status.
///
/// # Errors
/// The host refuses a socket, a terminal or a process.
pub fn run(options: &Options<'_>) -> anyhow::Result<u8> {
    let folder = Folder::open(options.root, options.id)?;
    // What its caller has blocked is its caller's affair.
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    if !options.foreground {
        setsid().context("cannot begin a session")?;
    }
    if let Some(socket) = options.console {
        console::take(socket).with_context(|| format!("cannot use console socket {}", socket.display()))?;
    }
    network::enter(options.network, options.own_network)?;
    let listener = protocol::listen(&folder)?;
    let (child, starter) = match wait_for_start(&listener, options)? {
        Ok(started) => started,
        Err(signal) => return Ok(of_signal(signal)),
    };
    sandbox::confine_monitor(folder.handle.as_fd());
    let machine = Arc::new(Machine::new(folder, child.id() as i32, starter));
    let attended = machine.clone();
    let attending = thread::Builder::new()
        .name("guest".to_owned())
        .spawn(move || attended.attend_guest())
        .context("cannot start a thread")?;
    let served = machine.clone();
    thread::Builder::new()
        .name("requests".to_owned())
        .spawn(move || served.serve(&listener))
        .context("cannot start a thread")?;
    Ok(machine.wait(child, attending))
}

/// Answers until the machine is started; gives that and who waits for it, or the signal that ends the container before.
fn wait_for_start(
    listener: &UnixListener,
    options: &Options<'_>,
) -> anyhow::Result<Result<(Child, UnixStream), i32>> {
    loop {
        let (mut stream, _) = listener.accept().context("cannot take a request")?;
        let _ = stream.set_read_timeout(Some(STUCK));
        let reply = match protocol::receive(&stream) {
            Ok(Request::Ping) => Reply::Done,
            Ok(Request::Start) => match start(options) {
                Ok(child) => return Ok(Ok((child, stream))),
                Err(error) => Reply::Failed(format!("{error:#}")),
            },
            Ok(Request::Signal(signal)) => {
                let _ = protocol::send(&mut stream, &Reply::Done);
                return Ok(Err(signal));
            }
            Ok(_) => Reply::Failed("container is not running".to_owned()),
            Err(error) => Reply::Failed(format!("{error:#}")),
        };
        // One that has gone needs no answer.
        let _ = protocol::send(&mut stream, &reply);
    }
}

/// Starts the machine.
fn start(options: &Options<'_>) -> anyhow::Result<Child> {
    let folder = Folder::open(options.root, options.id)?;
    let mut command = this_program(options.root);
    command.args(["machine", options.id]);
    command.args((options.own_network || options.network.is_some()).then_some("--connected"));
    let child = command.spawn().context("cannot start the machine's process")?;
    let mut record = folder.record()?;
    record.status = Status::Running;
    folder.write_record(&record)?;
    Ok(child)
}

/// The machine of a container.
struct Machine {
    folder: Folder,
    /// Its process.
    pid: i32,
    /// Who has asked for the start, and waits until the container's process has begun.
    starter: Mutex<Option<UnixStream>>,
    /// The way to the guest, once there is one.
    guest: Mutex<Option<UnixStream>>,
    /// Those who started processes that run.
    clients: Mutex<HashMap<u32, UnixStream>>,
    next: AtomicU32,
    /// How many ask now.
    asking: AtomicU32,
    /// The signal that the container was ended by.
    ended_by: AtomicI32,
    has_ended: AtomicBool,
}

impl Machine {
    fn new(folder: Folder, pid: i32, starter: UnixStream) -> Self {
        Self {
            folder,
            pid,
            starter: Mutex::new(Some(starter)),
            guest: Mutex::new(None),
            clients: Mutex::default(),
            next: AtomicU32::new(OWN + 1),
            asking: AtomicU32::new(0),
            ended_by: AtomicI32::new(0),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Waits for the machine's end; answers the container's status.
    fn wait(&self, mut child: Child, attending: JoinHandle<()>) -> u8 {
        let ended = child.wait();
        self.has_ended.store(true, Ordering::SeqCst);
        // What the guest has said before its end is heard, too.
        let _ = attending.join();
        if let Ok(mut record) = self.folder.record() {
            record.status = Status::Stopped;
            // What ends without it has stopped, too.
            let _ = self.folder.write_record(&record);
        }
        let by = self.ended_by.load(Ordering::SeqCst);
        let code = match ended {
            _ if by != 0 => of_signal(by),
            Ok(status) => code(status),
            Err(_) => FAILED,
        };
        self.answer_start(&self.why_not_begun(code));
        code
    }

    /// Says whether the container's process has begun to who has asked for it, once.
    fn answer_start(&self, reply: &Reply) {
        if let Some(mut starter) = lock(&self.starter).take() {
            // One that has gone needs no answer.
            let _ = protocol::send(&mut starter, reply);
        }
    }

    /// What `start` says of a machine that has ended before its guest has said that the process began.
    fn why_not_begun(&self, code: u8) -> Reply {
        if matches!(code, NOT_FOUND | NOT_EXECUTABLE) {
            // The guest came to it, and that there is no such program is the container's own status.
            return Reply::Done;
        }
        let why = std::fs::read_to_string(self.folder.path.join(FAILURE));
        Reply::Failed(why.unwrap_or_else(|_| {
            format!(
                "the machine has ended before the container's process began, with status {code}: its standard error says why"
            )
        }))
    }

    /// Takes what the guest says, from when it says something on.
    fn attend_guest(&self) {
        let path = self.folder.path.join(PROCESSES);
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) if self.has_ended.load(Ordering::SeqCst) => return,
                Err(_) => sleep(TICK),
            }
        };
        let Ok(reader) = stream.try_clone() else { return };
        let _ = stream.set_write_timeout(Some(PATIENCE));
        *lock(&self.guest) = Some(stream);
        let take = |frame| {
            self.take(frame);
            ControlFlow::Continue(())
        };
        if Frames::new(LONGEST_FROM_GUEST).read(reader, take).is_err() {
            messages::complain("the guest makes no sense to the container's monitor, and is ended");
            self.end(Signal::SIGKILL as i32);
        }
    }

    /// Hands a frame of the guest's to who started its process.
    fn take(&self, frame: Frame) {
        if frame.kind == Kind::Ready {
            return self.answer_start(&Reply::Done);
        }
        let is_output = matches!(frame.kind, Kind::Stdout | Kind::Stderr);
        if !is_output && !matches!(frame.kind, Kind::TakenStdin | Kind::Ended) {
            return;
        }
        let mut clients = lock(&self.clients);
        let client = clients.get_mut(&frame.id);
        let is_there = client.map(|client| client.write_all(&frame.encode()).is_ok());
        if is_there == Some(false) || frame.kind == Kind::Ended {
            // Its own thread sees that it has gone.
            if let Some(client) = clients.remove(&frame.id) {
                let _ =
                    client.shutdown(if is_there == Some(true) { Shutdown::Write } else { Shutdown::Both });
            }
        }
        drop(clients);
        if is_output && is_there != Some(true) {
            let kind = if frame.kind == Kind::Stdout { Kind::TakenStdout } else { Kind::TakenStderr };
            let _ = self.tell(&Frame::number(kind, frame.id, frame.payload.len() as u32));
        }
    }

    /// Sends the guest a frame, once there is a way to it.
    fn tell(&self, frame: &Frame) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            if let Some(guest) = &mut *lock(&self.guest) {
                return guest.write_all(&frame.encode()).context("the guest does not listen");
            }
            if self.has_ended.load(Ordering::SeqCst) || since.elapsed() > PATIENCE {
                bail!("container is not running");
            }
            sleep(TICK);
        }
    }

    fn serve(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                sleep(TICK);
                continue;
            };
            if self.asking.load(Ordering::SeqCst) as usize >= MOST_CLIENTS {
                continue;
            }
            self.asking.fetch_add(1, Ordering::SeqCst);
            let this = self.clone();
            let answer = move || {
                this.answer(stream);
                this.asking.fetch_sub(1, Ordering::SeqCst);
            };
            // One that gets no thread sees its connection end.
            if thread::Builder::new().spawn(answer).is_err() {
                self.asking.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn answer(&self, mut stream: UnixStream) {
        let _ = stream.set_read_timeout(Some(STUCK));
        let done = match protocol::receive(&stream) {
            Ok(Request::Ping) => Ok(()),
            Ok(Request::Start) => Err(anyhow::anyhow!("container is already running")),
            Ok(Request::Signal(signal)) => self.signal(signal),
            Ok(Request::Pause) => self.pause(true),
            Ok(Request::Resume) => self.pause(false),
            Ok(Request::Exec(process)) => match self.join(&process, &stream) {
                Ok(id) => return self.carry(id, stream),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let reply = done.map_or_else(|error| Reply::Failed(format!("{error:#}")), |()| Reply::Done);
        let _ = protocol::send(&mut stream, &reply);
    }

    fn signal(&self, signal: i32) -> anyhow::Result<()> {
        if signal == Signal::SIGKILL as i32 {
            self.end(signal);
            return Ok(());
        }
        self.tell(&Frame::number(Kind::Signal, OWN, signal as u32))
    }

    /// Ends the machine, and waits until it has ended, or gives it to the kernel to end.
    fn end(&self, signal: i32) {
        self.ended_by.store(signal, Ordering::SeqCst);
        let _ = self.pause(false);
        let pid = Pid::from_raw(self.pid);
        let _ = kill(pid, Signal::SIGTERM);
        let since = Instant::now();
        while since.elapsed() < GRACE && !self.has_ended.load(Ordering::SeqCst) {
            sleep(TICK);
        }
        if !self.has_ended.load(Ordering::SeqCst) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Stops the machine's processes, or lets them go on.
    fn pause(&self, stop: bool) -> anyhow::Result<()> {
        let signal = if stop { Signal::SIGSTOP } else { Signal::SIGCONT };
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid));
        let children = children.context("cannot find the machine's processes")?;
        let machines = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in machines.chain([self.pid]) {
            kill(Pid::from_raw(pid), signal).context("cannot stop the machine's process, or let it go on")?;
        }
        let mut record = self.folder.record()?;
        record.status = if stop { Status::Paused } else { Status::Running };
        self.folder.write_record(&record)
    }

    /// Has the guest start a process whose frames go to `stream`; answers its number.
    fn join(&self, process: &GuestProcess, stream: &UnixStream) -> anyhow::Result<u32> {
        let payload = serde_json::to_vec(process).context("a process cannot be written as JSON")?;
        let mut client = stream.try_clone().context("the host has no descriptor left")?;
        client.set_write_timeout(Some(STUCK))?;
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        protocol::send(&mut client, &Reply::Done)?;
        lock(&self.clients).insert(id, client);
        self.tell(&Frame { kind: Kind::Start, id, payload }).inspect_err(|_| {
            lock(&self.clients).remove(&id);
        })?;
        Ok(id)
    }

    /// Carries what who started a process sends it. A process does not outlive who started it.
    fn carry(&self, id: u32, stream: UnixStream) {
        let _ = stream.set_read_timeout(None);
        let mut is_heard = true;
        let pass = |frame: Frame| {
            let is_its = matches!(
                frame.kind,
                Kind::Stdin
                    | Kind::StdinEnd
                    | Kind::TakenStdout
                    | Kind::TakenStderr
                    | Kind::Signal
                    | Kind::Resize
            );
            is_heard = !is_its || self.tell(&Frame { id, ..frame }).is_ok();
            if is_heard { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // One that sends nonsense has gone.
        let _ = Frames::new(LONGEST_FROM_GUEST).read(stream, pass);
        if !is_heard {
            return;
        }
        if lock(&self.clients).remove(&id).is_some() {
            let _ = self.tell(&Frame::number(Kind::Signal, id, Signal::SIGKILL as u32));
        }
    }
}

/// A status as a container's.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().map(|code| code as u8);
    code.or_else(|| status.signal().map(of_signal)).unwrap_or(FAILED)
}
