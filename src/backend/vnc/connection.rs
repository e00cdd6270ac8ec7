//! One connection: whether a viewer or a browser has made it, what has come of it, and what has yet to go.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};

use super::Site;
use super::http::{self, Answer};
use super::session::Session;
use super::view::Wait;
use super::websocket::{Control, Unwrapper, wrap};

/// How much is read at once, in bytes.
const CHUNK: usize = 4096;
/// How many rectangles go at once before another connection's turn.
const RECTS_AT_ONCE: usize = 4;
/// More bytes than these wait for room: a browser's question whether the server is there gets no answer.
const CONTROL_LIMIT: usize = 64 << 10;
/// How long it takes at most to get in, a person's typing of a password included, or to get a page.
const ENTRANCE: Duration = Duration::from_secs(60);
/// How long a viewer may take nothing of what is there for it.
const STALL: Duration = Duration::from_secs(60);

/// What has made the connection.
enum Face {
    /// It has said nothing yet.
    Unknown,
    /// A browser, which has said so much.
    Browser(Vec<u8>),
    /// A viewer, perhaps one in a browser.
    Viewer { session: Box<Session>, web: Option<Unwrapper> },
    /// It only gets what is there for it.
    Leaving,
}

/// A connection.
pub struct Connection {
    socket: OwnedFd,
    face: Face,
    output: Vec<u8>,
    /// How much of the output has gone.
    written: usize,
    since: Instant,
    /// When output last went, or began to wait.
    progress: Instant,
}

/// What a connection waits for.
pub(super) struct Interest<'a> {
    pub events: PollFlags,
    /// What else becomes readable.
    pub changed: Option<BorrowedFd<'a>>,
    pub until: Option<Instant>,
}

impl Connection {
    /// A connection that has just been made.
    pub fn new(socket: OwnedFd, now: Instant) -> Self {
        Self { socket, face: Face::Unknown, output: Vec::new(), written: 0, since: now, progress: now }
    }

    /// The socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether it is a viewer's that has got in.
    pub(super) fn is_admitted(&self) -> bool {
        matches!(&self.face, Face::Viewer { session, .. } if session.is_admitted())
    }

    /// What it waits for.
    pub(super) fn interest(&self, site: &Site) -> Interest<'_> {
        let mut interest = Interest { events: PollFlags::empty(), changed: None, until: self.deadline() };
        interest.events.set(PollFlags::POLLIN, !matches!(self.face, Face::Leaving));
        interest.events.set(PollFlags::POLLOUT, !self.output.is_empty());
        let mut wait_until = |at: Instant| interest.until = interest.until.map(|it| it.min(at)).or(Some(at));
        match &self.face {
            Face::Unknown => wait_until(site.greet_at(self.since)),
            // What waits for room is followed when it has gone.
            Face::Viewer { session, .. } if self.output.is_empty() => match session.wait() {
                Wait::Never => {}
                Wait::Until(at) => wait_until(at),
                Wait::Change(changed) => interest.changed = Some(changed),
                Wait::Room => interest.events |= PollFlags::POLLOUT,
            },
            _ => {}
        }
        interest
    }

    /// When it has had enough time.
    fn deadline(&self) -> Option<Instant> {
        let entrance = (!self.is_admitted()).then(|| self.since + ENTRANCE);
        let stall = (!self.output.is_empty()).then(|| self.progress + STALL);
        entrance.into_iter().chain(stall).min()
    }

    /// The screen has changed.
    pub fn notice_change(&mut self) {
        if let Face::Viewer { session, .. } = &mut self.face {
            session.notice_change();
        }
    }

    /// Does what can be done now, a bounded part of it; answers whether the connection goes on.
    pub fn serve(&mut self, readable: bool, now: Instant, site: &mut Site) -> bool {
        match self.try_serve(readable, now, site) {
            Ok(goes_on) => goes_on,
            Err(why) => {
                log::debug!(target: "vnc", "a viewer is disconnected: {why}");
                false
            }
        }
    }

    fn try_serve(&mut self, readable: bool, now: Instant, site: &mut Site) -> Result<bool, &'static str> {
        if self.output.is_empty() {
            self.progress = now;
        }
        if readable && !self.receive(now, site)? {
            return Ok(false);
        }
        if matches!(self.face, Face::Unknown) && now >= site.greet_at(self.since) {
            self.greet(site, None);
        }
        self.deliver(now)?;
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            return Err("it has had enough time");
        }
        Ok(!self.output.is_empty() || !matches!(self.face, Face::Leaving))
    }

    /// Reads what has come; answers whether there may be more.
    fn receive(&mut self, now: Instant, site: &mut Site) -> Result<bool, &'static str> {
        let mut chunk = [0; CHUNK];
        match recv(self.socket.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Ok(false),
            Ok(len) => self.take(&chunk[..len], now, site).map(|()| true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    fn take(&mut self, bytes: &[u8], now: Instant, site: &mut Site) -> Result<(), &'static str> {
        if matches!(self.face, Face::Unknown) {
            match bytes[0] {
                // A viewer that knows what it will be greeted with.
                b'R' => self.greet(site, None),
                _ => self.face = Face::Browser(Vec::new()),
            }
        }
        match &mut self.face {
            Face::Browser(head) => {
                head.extend(bytes);
                let Some(len) = http::head_len(head) else {
                    return if head.len() > http::HEAD_MAX { Err("its request is too long") } else { Ok(()) };
                };
                let rest = head.split_off(len);
                match http::answer(head, &site.pages, site.display.password.is_some()) {
                    Answer::Last(answer) => {
                        site.browsed = Some(now);
                        self.output.extend(answer);
                        self.face = Face::Leaving;
                        Ok(())
                    }
                    Answer::Upgrade(answer) => {
                        self.output.extend(answer);
                        self.greet(site, Some(Unwrapper::default()));
                        self.hear(&rest, now)
                    }
                }
            }
            _ => self.hear(bytes, now),
        }
    }

    /// From now on it is a viewer's.
    fn greet(&mut self, site: &Site, web: Option<Unwrapper>) {
        let session = said(web.is_some(), &mut self.output, |out| Session::new(site.display.clone(), out));
        self.face = Face::Viewer { session: Box::new(session), web };
    }

    /// Takes what a viewer says.
    fn hear(&mut self, bytes: &[u8], now: Instant) -> Result<(), &'static str> {
        let Face::Viewer { session, web } = &mut self.face else { return Ok(()) };
        let (mut data, mut closed) = (Vec::new(), false);
        if let Some(web) = web {
            let output = &mut self.output;
            web.take(bytes, &mut data, &mut |control| match control {
                Control::Ping(answer) if output.len() < CONTROL_LIMIT => output.extend(answer),
                Control::Ping(_) => {}
                Control::Close => closed = true,
            })?;
        }
        let data = if web.is_some() { &data } else { bytes };
        said(web.is_some(), &mut self.output, |out| session.receive(data, now, out))?;
        if closed { Err("its page has closed it") } else { Ok(()) }
    }

    /// Writes what is there, and what comes of it when it has gone.
    fn deliver(&mut self, now: Instant) -> Result<(), &'static str> {
        for _ in 0..RECTS_AT_ONCE {
            if self.output.is_empty() {
                self.produce(now);
            }
            if !self.write(now)? {
                break;
            }
        }
        Ok(())
    }

    /// Has the session go on.
    fn produce(&mut self, now: Instant) {
        let Face::Viewer { session, web } = &mut self.face else { return };
        said(web.is_some(), &mut self.output, |out| session.produce(now, out));
        if session.is_over() {
            self.face = Face::Leaving;
        }
    }

    /// Writes what the socket takes; answers whether that was all of something.
    fn write(&mut self, now: Instant) -> Result<bool, &'static str> {
        let had_some = !self.output.is_empty();
        while self.written < self.output.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.output[self.written..], flags) {
                Ok(len) => {
                    self.written += len;
                    self.progress = now;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(_) => return Err("it has gone"),
            }
        }
        self.written = 0;
        self.output.clear();
        if !self.is_amid_picture() {
            // What was a large rectangle's is the host's again.
            self.output = Vec::new();
        }
        Ok(had_some)
    }

    /// Whether another rectangle of the same picture comes.
    fn is_amid_picture(&self) -> bool {
        matches!(&self.face, Face::Viewer { session, .. } if matches!(session.wait(), Wait::Room))
    }
}

/// Has a session append to the output, as a message of its own for a page.
fn said<T>(web: bool, output: &mut Vec<u8>, say: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = output.len();
    let result = say(output);
    if web {
        wrap(start, output);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use devices::screen::{Screen, Size};

    use super::super::novnc::Pages;
    use super::super::session::Display;
    use super::super::tests::Log;
    use super::*;

    #[test]
    fn output_is_in_the_same_memory_until_a_picture_has_gone_and_in_none_then() {
        let screen = Arc::new(Screen::new(Size::new(300, 250).unwrap()).unwrap());
        let input = Arc::new(Log::default());
        let display = Display { screen, input, password: None, name: String::new() };
        let mut site = Site::new(Arc::new(display), Pages::default());
        let (mut viewer, server) = UnixStream::pair().unwrap();
        viewer.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let mut connection = Connection::new(server.into(), now);
        viewer.write_all(b"RFB 003.008\n\x01\x01").unwrap();
        viewer.write_all(&[3, 0, 0, 0, 0, 0, 1, 44, 0, 250]).unwrap();
        let (mut places, mut got) = (Vec::new(), Vec::new());
        while got.len() < 300 * 250 * 4 || !connection.output.is_empty() {
            assert!(connection.serve(true, now, &mut site));
            places.push((connection.output.capacity() > 0).then_some(connection.output.as_ptr()));
            let error = viewer.read_to_end(&mut got).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        places.dedup();
        assert!(matches!(places[..], [Some(_), None]), "{places:?}");
    }
}
