//! The control socket: the supervisor's side, between clients that send any packet at any time and a VM process that
//! answers anything, and a command's side, with a supervisor that answers anything.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use devices::screen::Size;
use kite::backend::socket::{Name, listen_for_packets};
use kite::sandbox::control::message::{Reply, Request, decode, encode};
use kite::sandbox::control::{Connection, ControlSocket, Description, Facts, Server, Unasked, Wish, cut};
use kite::sandbox::{Answer, Question};
use kite::spec::id::MachineId;
use nix::poll::{PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    shutdown, socket, socketpair,
};
use tempfile::TempDir;

use crate::{bytes, each};

/// How many clients there are at most; the server takes fewer.
const CLIENTS: usize = 12;
/// The most clients that the server takes at a time, and the most questions on their way to the VM process.
const SERVED: usize = 8;
/// The longest packet in bytes.
const PACKET: usize = 2048;
/// The most acts.
const ACTS: usize = 200;
/// A text that takes as much room in a description as any.
const LONGEST: &str = match str::from_utf8(&[1; 500]) {
    Ok(text) => text,
    Err(_) => unreachable!(),
};
/// Longer than anything is waited for.
const LONG: Duration = Duration::from_secs(60);
/// The longest that anything but a machine's end is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client, the VM process or time does.
#[derive(Arbitrary, Debug)]
enum Act<'a> {
    /// A client sends a packet.
    Send(u8, Packet<'a>),
    /// It asks something that there is.
    Ask(u8, Asked),
    /// It takes what has come for it.
    Take(u8),
    /// It goes.
    Go(u8),
    Answer(Answered),
    /// So many milliseconds pass.
    Pass(u16),
}

/// A packet that may be any.
#[derive(Arbitrary, Debug)]
struct Packet<'a> {
    content: Content<'a>,
    descriptors: u8,
}

#[derive(Arbitrary, Debug)]
enum Content<'a> {
    Bytes(#[arbitrary(with = bytes)] &'a [u8]),
    /// The same byte, so often.
    Repeated(u8, u16),
    Request(Asked),
    Reply(Replied<'a>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Asked {
    Describe,
    Screenshot,
    Pause,
    Resume,
    Stop(u32),
}

#[derive(Arbitrary, Debug)]
enum Answered {
    Done,
    /// One character, so often.
    Failed(char, u16),
    /// A picture, and how many bytes of it there are.
    Picture(u32, u32, u16),
}

#[derive(Arbitrary, Debug)]
enum Replied<'a> {
    Description(u64, bool, &'a str),
    Picture(u32, u32),
    Done,
    Failed(&'a str),
}

impl Asked {
    fn request(self) -> Request {
        match self {
            Self::Describe => Request::Describe,
            Self::Screenshot => Request::Screenshot,
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
            Self::Stop(milliseconds) => Request::Stop(milliseconds),
        }
    }
}

impl Answered {
    fn answer(&self) -> Answer {
        match self {
            Self::Done => Answer::Done,
            Self::Failed(char, count) => Answer::Failed(char.to_string().repeat(usize::from(*count) % 3000)),
            Self::Picture(width, height, len) => {
                Answer::Picture { size: Size { width: *width, height: *height }, content: memory(*len) }
            }
        }
    }
}

impl Replied<'_> {
    fn reply(&self) -> Reply {
        match *self {
            Self::Description(since, paused, text) => {
                Reply::Description(Description { facts: Facts { since, ..facts(text) }, paused })
            }
            Self::Picture(width, height) => Reply::Picture(Size { width, height }),
            Self::Done => Reply::Done,
            Self::Failed(why) => Reply::Failed(why.to_owned()),
        }
    }
}

impl Packet<'_> {
    fn bytes(&self) -> Vec<u8> {
        match &self.content {
            Content::Bytes(bytes) => bytes.to_vec(),
            Content::Repeated(byte, count) => vec![*byte; usize::from(*count) % (2 * PACKET)],
            Content::Request(asked) => encode(&asked.request()),
            Content::Reply(replied) => encode(&replied.reply()),
        }
    }

    /// Sends it with some copies of a descriptor, of which one packet can have 253. A peer may have gone, or have no room.
    fn send(&self, socket: &OwnedFd, descriptor: RawFd) {
        let descriptors = vec![descriptor; [0, 1, 2, 253][usize::from(self.descriptors) % 4]];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let control = &control[..usize::from(!descriptors.is_empty())];
        let bytes = self.bytes();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None);
    }
}

fn facts(text: &str) -> Facts {
    let (id, command) = (MachineId::parse("fuzz").unwrap(), Some(cut(text)));
    Facts { id, pid: 1, since: 2, command, kernel: cut(LONGEST), screen: true }
}

fn memory(len: u16) -> OwnedFd {
    let memory = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).unwrap());
    memory.set_len(len.into()).unwrap();
    memory.into()
}

/// Descriptors that are sent, each of them the same end of a pipe.
struct Sent {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Sent {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self { reader, writer }
    }

    /// Waits until nothing has any more of them.
    fn assert_closed(mut self) {
        drop(self.writer);
        assert_eq!(self.reader.read(&mut [0]).unwrap(), 0);
    }
}

struct Client {
    socket: OwnedFd,
    has_reply: bool,
}

struct Rig {
    server: Server,
    clients: [Option<Client>; CLIENTS],
    sent: Sent,
    now: Instant,
    /// What the VM process has yet to answer.
    asked: VecDeque<Question>,
    is_paused: bool,
    path: PathBuf,
    _name: Name,
    _folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fuzz");
        let (listener, name) = listen_for_packets(&path).unwrap();
        Self {
            server: Server::new(ControlSocket::new(listener, facts(LONGEST))),
            clients: Default::default(),
            sent: Sent::new(),
            now: Instant::now(),
            asked: VecDeque::new(),
            is_paused: false,
            path,
            _name: name,
            _folder: folder,
        }
    }

    /// The client at a place, which connects if there is none.
    fn client(&mut self, place: u8) -> &mut Client {
        self.clients[usize::from(place) % CLIENTS].get_or_insert_with(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
            // Where there is no room for another, it is not connected, and what it does fails.
            let _ = connect(socket.as_raw_fd(), &UnixAddr::new(&self.path).unwrap());
            Client { socket, has_reply: false }
        })
    }

    fn send(&mut self, place: u8, packet: &Packet<'_>) {
        let descriptor = self.sent.writer.as_raw_fd();
        packet.send(&self.client(place).socket, descriptor);
    }

    fn ask(&mut self, place: u8, asked: Asked) {
        self.send(place, &Packet { content: Content::Request(asked), descriptors: 0 });
    }

    /// What has come for a client: one reply at most, which it can read.
    fn take(&mut self, place: u8) -> Option<Reply> {
        let client = self.client(place);
        let mut bytes = [0; 2 * PACKET];
        let len = recv(client.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).unwrap_or_default();
        if len == 0 {
            return None;
        }
        assert!(len <= PACKET && !std::mem::replace(&mut client.has_reply, true));
        Some(decode(&bytes[..len]).expect("a reply makes sense"))
    }

    fn answer(&mut self, answer: Answer) {
        let asked = self.asked.pop_front();
        let is_right = match (asked, &answer) {
            (None, _) => false,
            (Some(_), Answer::Failed(_)) | (Some(Question::Screenshot), Answer::Picture { .. }) => true,
            (Some(question @ (Question::Pause | Question::Resume)), Answer::Done) => {
                self.is_paused = question == Question::Pause;
                true
            }
            _ => false,
        };
        assert_eq!(self.server.pass_on(answer), if is_right { Ok(()) } else { Err(Unasked) });
    }

    /// Serves as often as a supervisor would, which is woken while there is anything.
    fn serve(&mut self) {
        for _ in 0..ACTS {
            for wish in self.server.serve(self.now) {
                match wish {
                    Wish::Ask(question) => self.asked.push_back(question),
                    Wish::Stop(_) => {}
                }
            }
            assert!(self.asked.len() <= SERVED, "{:?}", self.asked);
            let until = self.server.until();
            assert!(until.is_none_or(|until| until > self.now && until <= self.now + PATIENCE));
            let mut descriptors = Vec::new();
            self.server.descriptors(&mut descriptors);
            assert!(descriptors.len() <= SERVED);
            if poll(&mut descriptors, PollTimeout::ZERO) == Ok(0) {
                return;
            }
        }
        panic!("clients wake the supervisor without end");
    }

    fn act(&mut self, act: &Act<'_>) {
        match act {
            Act::Send(place, packet) => self.send(*place, packet),
            Act::Ask(place, asked) => self.ask(*place, *asked),
            Act::Take(place) => _ = self.take(*place),
            Act::Go(place) => self.clients[usize::from(*place) % CLIENTS] = None,
            Act::Answer(answered) => self.answer(answered.answer()),
            Act::Pass(time) => self.now += Duration::from_millis((*time).into()),
        }
        self.serve();
    }

    /// Whatever the others did, a client that does everything right gets what it asks for.
    fn assert_works(&mut self) {
        self.clients = Default::default();
        self.now += LONG;
        self.serve();
        self.ask(0, Asked::Describe);
        self.serve();
        let expected = Description { facts: facts(LONGEST), paused: self.is_paused };
        assert_eq!(self.take(0), Some(Reply::Description(expected)));
        while !self.asked.is_empty() {
            self.answer(Answer::Failed(String::new()));
        }
        self.ask(1, Asked::Pause);
        self.serve();
        assert_eq!(self.asked, [Question::Pause]);
        self.answer(Answer::Done);
        assert_eq!(self.take(1), Some(Reply::Done));
    }
}

pub fn run(data: &[u8]) {
    match data.split_first() {
        Some((first, rest)) if first % 4 == 0 => command(rest),
        Some((_, rest)) => supervisor(rest),
        None => {}
    }
}

fn supervisor(data: &[u8]) {
    let mut rig = Rig::new();
    for act in each(data, ACTS) {
        rig.act(&act);
    }
    rig.assert_works();
    let Rig { sent, clients, server, .. } = rig;
    drop((clients, server));
    sent.assert_closed();
}

/// A command, and the supervisor that has sent an answer before it is asked.
fn command(data: &[u8]) {
    let mut data = Unstructured::new(data);
    let Ok((asked, packet, content)) = data.arbitrary::<(Asked, Packet<'_>, Option<u16>)>() else { return };
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let sent = Sent::new();
    match content.map(memory) {
        Some(memory) => packet.send(&theirs, memory.as_raw_fd()),
        None => packet.send(&theirs, sent.writer.as_fd().as_raw_fd()),
    }
    // Nothing more comes, and so nothing is waited for.
    shutdown(theirs.as_raw_fd(), Shutdown::Write).unwrap();
    let connection = Connection::over(MachineId::parse("fuzz").unwrap(), ours);
    match asked {
        Asked::Describe => {
            let known = connection.describe().ok().map(|it| encode(&Reply::Description(it)));
            let whole = decode::<Reply>(&packet.bytes()).map(|reply| encode(&reply));
            assert!(known.is_none() || known == whole);
        }
        Asked::Screenshot => {
            if let Ok(surface) = connection.screenshot().and_then(|picture| picture.surface()) {
                assert!(surface.size().area() * 4 <= usize::from(content.unwrap_or_default()));
            }
        }
        Asked::Pause => _ = connection.pause(true),
        Asked::Resume => _ = connection.pause(false),
        Asked::Stop(milliseconds) => _ = connection.stop(Duration::from_millis(milliseconds.into())),
    }
    drop(theirs);
    sent.assert_closed();
}
