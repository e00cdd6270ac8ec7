//! Named ports on the host: a UNIX socket each, whose client talks to the process that has /dev/virtio-ports/NAME open in the
//! guest.
//!
//! A client at a time is served, the next one waits. All sockets have one thread. What either side does not take waits in
//! bounded buffers, and then with who wrote it. What a client has sent is the guest's to read after the client has gone,
//! as long as the guest keeps the port open.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, ensure};
use devices::virtio::console::{Host, MOST_NAMED, Port};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::host::event::event;
use crate::host::thread::{ThreadKind, spawn};
use crate::spec::device::PortSpec;
use name::listen;
pub use name::{Name, listen_for_owner, listen_for_packets};

/// How much is read from a client at once, in bytes.
const CHUNK: usize = 4096;
/// The thread's stack in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// The sockets of all ports, and the thread that serves them. Dropping it ends that and removes them.
pub struct Ports {
    ports: Vec<Arc<Port>>,
    wake: Arc<Wake>,
    /// What the thread is to serve, until it is started.
    lines: Vec<Line>,
    thread: Option<JoinHandle<()>>,
    names: Vec<Name>,
}

/// Wakes the thread.
struct Wake {
    event: EventFd,
    stop: AtomicBool,
}

impl Wake {
    fn wake(&self) {
        // The counter cannot get full: the thread takes it down to zero.
        let _ = self.event.write(1);
    }
}

struct Waker(Arc<Wake>);

impl Host for Waker {
    fn output_ready(&self) {
        self.0.wake();
    }

    fn changed(&self) {
        self.0.wake();
    }
}

impl Ports {
    /// Listens on the sockets that `specs` name, each of them made anew. Nobody is served before [`Self::start`].
    ///
    /// # Errors
    /// A name comes twice, there is something at a path, or the host refuses a socket.
    pub fn open(specs: &[&PortSpec]) -> anyhow::Result<Self> {
        ensure!(
            specs.len() <= MOST_NAMED,
            "{} ports are too many: there is room for {MOST_NAMED}",
            specs.len()
        );
        let wake = Arc::new(Wake { event: event()?, stop: AtomicBool::new(false) });
        let (mut lines, mut names): (Vec<Line>, _) = (Vec::new(), Vec::new());
        for PortSpec { name, path } in specs {
            ensure!(lines.iter().all(|it| it.name != *name), "two ports are named {name}: name one another");
            let (listener, bound) = listen(path).map_err(|error| why(name, path, &error))?;
            names.push(bound);
            let port = Port::new(name, Box::new(Waker(wake.clone()))).context("cannot make an eventfd")?;
            lines.push(Line::new(name, Arc::new(port), listener));
        }
        let ports = lines.iter().map(|line| line.port.clone()).collect();
        Ok(Self { ports, wake, lines, thread: None, names })
    }

    /// Starts to serve, once. To be called once signals are blocked.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let mut lines = std::mem::take(&mut self.lines);
        if !lines.is_empty() {
            let wake = self.wake.clone();
            self.thread = Some(spawn("ports", STACK, ThreadKind::Io, move || run(&wake, &mut lines))?);
        }
        Ok(())
    }

    /// The sockets' names, to be removed by their owner.
    pub fn take_names(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.names)
    }

    /// The host's ends, in the order of the command line.
    pub fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }
}

fn why(name: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    let path = path.display();
    match error.kind() {
        ErrorKind::AddrInUse => {
            anyhow!(
                "cannot listen on {path} for port {name}: there is something at that path, or somebody listens there; remove it or use another"
            )
        }
        _ => anyhow!("cannot listen on {path} for port {name}: {error}"),
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.wake.stop.store(true, Ordering::SeqCst);
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic and ended the process.
            let _ = thread.join();
        }
    }
}

fn run(wake: &Wake, lines: &mut [Line]) {
    while !wake.stop.load(Ordering::SeqCst) {
        let gone = wait(wake, lines);
        for (line, gone) in lines.iter_mut().zip(gone) {
            line.serve(gone);
        }
    }
}

/// Waits until there is something to do; answers for each line whether its client has hung up.
fn wait(wake: &Wake, lines: &[Line]) -> Vec<bool> {
    let mut fds = vec![PollFd::new(wake.event.as_fd(), PollFlags::POLLIN)];
    let places: Vec<_> = lines
        .iter()
        .map(|line| {
            let fd = line.watched()?;
            fds.push(fd);
            Some(fds.len() - 1)
        })
        .collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => panic!("poll on descriptors of our own: {error}"),
    }
    let _ = wake.event.read();
    let gone = |at: usize| {
        fds[at].revents().is_some_and(|it| it.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    };
    places.into_iter().map(|place| place.is_some_and(gone)).collect()
}

/// One port's way between its socket and the device.
struct Line {
    name: String,
    port: Arc<Port>,
    listener: UnixListener,
    listening: bool,
    client: Option<Client>,
}

struct Client {
    stream: UnixStream,
    /// Nothing more comes from it.
    ended: bool,
    /// Nothing more goes to it.
    gone: bool,
    /// Read, and not yet taken by the guest.
    input: Vec<u8>,
    /// Of the guest, and the part of it that is written.
    output: Vec<u8>,
    written: usize,
}

impl Line {
    fn new(name: &str, port: Arc<Port>, listener: UnixListener) -> Self {
        Self { name: name.to_owned(), port, listener, listening: true, client: None }
    }

    /// What to wait for, beside what the device says.
    fn watched(&self) -> Option<PollFd<'_>> {
        let Some(client) = &self.client else {
            return self.listening.then(|| PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        };
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, client.reads(&self.port));
        events.set(PollFlags::POLLOUT, !client.output.is_empty());
        // A client that has hung up is always ready, so it is asked only while there is something to read.
        let asked = !client.gone || !events.is_empty();
        asked.then(|| PollFd::new(client.stream.as_fd(), events))
    }

    /// Carries what can be carried now, a bounded part of it.
    fn serve(&mut self, hung_up: bool) {
        if self.client.is_none() {
            self.accept();
        }
        let Some(client) = &mut self.client else { return };
        client.gone |= hung_up;
        client.write(&self.port);
        client.read(&self.port);
        // What it sent is the guest's, if that wants it.
        let delivered = client.ended && client.input.is_empty() && self.port.is_drained();
        if client.gone && (delivered || !self.port.is_open()) {
            self.client = None;
            self.port.connect(false);
        }
    }

    fn accept(&mut self) {
        let accepted = self.listener.accept();
        match accepted.and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
            Ok(stream) => {
                let (input, output) = (Vec::new(), Vec::new());
                self.client = Some(Client { stream, ended: false, gone: false, input, output, written: 0 });
                self.port.connect(true);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                // The client waits on, and asking again at once would not help it.
                self.listening = false;
                log::warn!(target: "ports", "port {} takes no more clients: {error}", self.name);
            }
        }
    }
}

impl Client {
    /// Whether there may be input that the guest can take.
    fn reads(&self, port: &Port) -> bool {
        !self.ended && self.input.is_empty() && port.is_open()
    }

    fn read(&mut self, port: &Port) {
        if self.reads(port) {
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(len) => self.input.extend(&chunk[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => (self.ended, self.gone) = (true, true),
            }
        }
        if !self.input.is_empty() {
            let taken = port.receive(&self.input);
            self.input.drain(..taken);
        }
    }

    fn write(&mut self, port: &Port) {
        if self.output.is_empty() {
            port.take_output(&mut self.output);
        }
        while !self.gone && self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
        // Also what a client that has gone would have got: the guest does not wait for it. And what has come since is
        // taken now, for it is not reported twice; room in the socket brings us back.
        self.output.clear();
        self.written = 0;
        port.take_output(&mut self.output);
    }
}

mod name;
#[cfg(test)]
mod tests;
