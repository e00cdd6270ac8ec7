//! The screen for viewers of VNC (RFB 3.8, RFC 6143), and for browsers at the same address.
//!
//! One thread serves a bounded number of connections. It looks at the screen only for a viewer that has asked for a picture, and
//! sleeps otherwise. What a viewer does not take waits in a buffer of one rectangle; what it says is taken in small pieces.
//! Neither holds up the guest, which does not know who looks.

pub mod connection;
mod controls;
mod encoding;
mod http;
mod keys;
pub mod novnc;
pub mod password;
mod pixel;
pub mod session;
#[cfg(test)]
mod tests;
mod view;
mod websocket;

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use devices::screen::{InputSink, Screen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{setsockopt, sockopt};

use super::socket::{Name, listen_for_owner};
use crate::host::event::event;
use crate::host::thread::{ThreadKind, spawn};
use crate::spec::vnc::{Address, VncSpec};
use connection::Connection;
use novnc::Pages;
use password::Password;
use session::Display;

/// The most connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// The thread's stack in bytes; the host gives what is touched of it: a compressor is made on it.
const STACK: usize = 1 << 20;
/// How viewers call the screen.
const TITLE: &str = "kite";

/// How long a browser, which speaks first, is waited for before a viewer is greeted, which does not.
const GREETING: Duration = Duration::from_millis(250);
/// The same while a browser loads the page: it makes connections ahead, and asks on them later.
const GREETING_BESIDE_BROWSER: Duration = Duration::from_secs(5);
/// How long after its last request a browser may do so.
const LOADING: Duration = Duration::from_secs(30);

/// What there is at the address.
pub struct Site {
    /// The screen.
    pub display: Arc<Display>,
    /// What browsers get.
    pub pages: Pages,
    /// When one last asked for a part of it.
    browsed: Option<Instant>,
}

impl Site {
    /// A site that no browser has asked for anything yet.
    pub fn new(display: Arc<Display>, pages: Pages) -> Self {
        Self { display, pages, browsed: None }
    }

    /// When one who has made a connection then, and says nothing, is taken for a viewer.
    fn greet_at(&self, since: Instant) -> Instant {
        let loading = self.browsed.is_some_and(|browsed| since < browsed + LOADING);
        since + if loading { GREETING_BESIDE_BROWSER } else { GREETING }
    }
}

/// The server, which listens from the beginning. Dropping it ends its thread and all connections.
pub struct Vnc {
    stop: Arc<EventFd>,
    /// What the thread is to serve, until it is started.
    server: Option<Server>,
    thread: Option<JoinHandle<()>>,
    name: Option<Name>,
}

impl Vnc {
    /// Listens where `spec` says, for viewers of `screen` whose keys and pointer go to `input`. None is served before
    /// [`Self::start`].
    ///
    /// # Errors
    /// The host refuses the address, or there is no password or page where `spec` says.
    pub fn open(spec: &VncSpec, screen: Arc<Screen>, input: Arc<dyn InputSink>) -> anyhow::Result<Self> {
        let password = spec.password_file.as_deref().map(Password::read).transpose()?;
        let pages = Pages::read(spec.novnc.as_deref())?;
        let refused = || format!("cannot listen on {} for VNC", spec.listen);
        let (listener, name) = match &spec.listen {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).with_context(refused)?;
                listener.set_nonblocking(true).with_context(refused)?;
                // What is accepted has it as well: a key's answer goes at once.
                setsockopt(&listener, sockopt::TcpNoDelay, &true).with_context(refused)?;
                // And a viewer's host that has vanished is noticed, however little is drawn.
                setsockopt(&listener, sockopt::KeepAlive, &true).with_context(refused)?;
                (Listener::Tcp(listener), None)
            }
            Address::Unix(path) => {
                let (listener, name) = listen_for_owner(path).with_context(refused)?;
                (Listener::Unix(listener), Some(name))
            }
        };
        let display = Arc::new(Display { screen, input, password, name: TITLE.to_owned() });
        let stop = Arc::new(event()?);
        let site = Site::new(display, pages);
        let server = Server { listener, is_listening: true, site, connections: Vec::new() };
        Ok(Self { stop, server: Some(server), thread: None, name })
    }

    /// Starts to serve, once. To be called once signals are blocked.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            let stop = self.stop.clone();
            self.thread = Some(spawn("vnc", STACK, ThreadKind::Vnc, move || while server.serve(&stop) {})?);
        }
        Ok(())
    }

    /// The socket's name, to be removed by its owner.
    pub fn take_name(&mut self) -> Option<Name> {
        self.name.take()
    }
}

impl Drop for Vnc {
    fn drop(&mut self) {
        // The supervisor, which has no thread of it, has the same counter.
        if let Some(thread) = self.thread.take() {
            // The counter cannot be full: this is the first time.
            let _ = self.stop.write(1);
            // The panic hook has reported a panic and ended the process.
            let _ = thread.join();
        }
    }
}

/// Where connections come.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| stream.into()),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| stream.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// What the thread serves.
struct Server {
    listener: Listener,
    /// It did not refuse a connection since the last one has ended.
    is_listening: bool,
    site: Site,
    connections: Vec<Connection>,
}

/// What has become of what was waited for.
struct Ready {
    stop: bool,
    listener: bool,
    /// For each connection whether it is readable, and whether the screen has changed for it.
    connections: Vec<(bool, bool)>,
}

impl Server {
    /// Waits, and does what there is to do then; answers whether to go on.
    fn serve(&mut self, stop: &EventFd) -> bool {
        let ready = self.wait(stop);
        let now = Instant::now();
        let mut ready_ones = ready.connections.into_iter();
        let count = self.connections.len();
        self.connections.retain_mut(|connection| {
            let (readable, changed) = ready_ones.next().unwrap_or_default();
            if changed {
                connection.notice_change();
            }
            connection.serve(readable, now, &mut self.site)
        });
        self.is_listening |= self.connections.len() < count;
        if ready.listener {
            self.accept(now);
        }
        !ready.stop
    }

    fn wait(&self, stop: &EventFd) -> Ready {
        let listens = self.is_listening && self.has_room();
        let listening = if listens { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds =
            vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(self.listener.as_fd(), listening)];
        let (mut until, mut places) = (None::<Instant>, Vec::new());
        for connection in &self.connections {
            let interest = connection.interest(&self.site);
            fds.push(PollFd::new(connection.socket(), interest.events));
            places.push((fds.len() - 1, interest.changed.is_some()));
            fds.extend(interest.changed.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            until = until.into_iter().chain(interest.until).min();
        }
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up, or the thread would turn until then.
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("poll on descriptors of our own: {error}"),
        }
        let any = |at: usize, flags| fds[at].revents().is_some_and(|it| it.intersects(flags));
        let input = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let connections = places
            .into_iter()
            .map(|(at, looks)| (any(at, input), looks && any(at + 1, PollFlags::POLLIN)))
            .collect();
        Ready { stop: any(0, PollFlags::POLLIN), listener: any(1, PollFlags::POLLIN), connections }
    }

    /// Whether there is a place for another connection, or one that has not got in could give it its own.
    fn has_room(&self) -> bool {
        self.connections.len() < CONNECTIONS_MAX || !self.connections.iter().all(Connection::is_admitted)
    }

    fn accept(&mut self, now: Instant) {
        match self.listener.accept() {
            Ok(socket) => {
                if self.connections.len() == CONNECTIONS_MAX
                    && let Some(oldest) = self.connections.iter().position(|it| !it.is_admitted())
                {
                    self.connections.remove(oldest);
                }
                self.connections.push(Connection::new(socket, now));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                // Asking again at once would not help.
                self.is_listening = false;
                log::warn!(target: "vnc", "no more viewers are taken until one goes: {error}");
            }
        }
    }
}
