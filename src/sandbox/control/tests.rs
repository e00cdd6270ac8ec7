//! The supervisor's side against clients that ask, stall, flood and go, and against a VM process that lies.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use devices::screen::{Size, Surface};
use tempfile::TempDir;

use super::client::{Picture, connect_to};
use super::message::{Reply, Request, decode, encode};
use super::*;
use crate::host::atomic_file;
use crate::sandbox::channel::{Answer, LONGEST, Packet, Question, Socket};

/// Longer than anything is waited for.
const LONG: Duration = Duration::from_secs(60);

struct Rig {
    server: Server,
    path: PathBuf,
    _folder: TempDir,
    _name: Name,
}

impl Rig {
    fn new() -> Self {
        Self::with_screen(true)
    }

    fn with_screen(screen: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let (listener, name) = listen_for_packets(&path).unwrap();
        let server = Server::new(ControlSocket::new(listener, facts(screen)));
        Self { server, path, _folder: folder, _name: name }
    }

    fn connect(&self) -> Socket {
        connect_to(&self.path).unwrap()
    }

    /// A client that has asked.
    fn ask(&self, request: &Request) -> Socket {
        let client = self.connect();
        client.send_now(&encode(request), None).unwrap();
        client
    }

    fn serve(&mut self) -> Vec<Wish> {
        self.server.serve(Instant::now())
    }
}

fn facts(screen: bool) -> Facts {
    let (command, kernel) = (Some("true".to_owned()), "vmlinux".to_owned());
    Facts { id: MachineId::parse("a").unwrap(), pid: 1, since: 2, command, kernel, screen }
}

fn reply(client: &Socket) -> Option<(Reply, Option<OwnedFd>)> {
    match client.receive(false).unwrap() {
        Packet::Of(bytes, content) => Some((decode(&bytes).unwrap(), content)),
        Packet::Nothing | Packet::End => None,
    }
}

fn failure(client: &Socket) -> String {
    match reply(client) {
        Some((Reply::Failed(why), None)) => why,
        other => panic!("{other:?}"),
    }
}

fn has_gone(client: &Socket) -> bool {
    matches!(client.receive(false), Ok(Packet::End))
}

fn picture(size: Size, content: &[u8]) -> Answer {
    let mut memory: File = atomic_file::memory().unwrap();
    memory.write_all(content).unwrap();
    Answer::Picture { size, content: memory.into() }
}

fn shown(client: &Socket) -> anyhow::Result<Surface> {
    match reply(client) {
        Some((Reply::Picture(size), Some(content))) => Picture::new(size, content)?.surface(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_describes_itself_and_its_client_goes() {
    let mut rig = Rig::new();
    let client = rig.ask(&Request::Describe);
    assert_eq!(rig.serve(), []);
    let (answer, _) = reply(&client).unwrap();
    assert_eq!(answer, Reply::Description(Description { facts: facts(true), paused: false }));
    assert!(has_gone(&client));
}

#[test]
fn a_picture_goes_to_who_has_asked_for_it() {
    let mut rig = Rig::new();
    let clients = [rig.ask(&Request::Screenshot), rig.ask(&Request::Screenshot)];
    assert_eq!(rig.serve(), [Wish::Ask(Question::Screenshot), Wish::Ask(Question::Screenshot)]);
    assert!(clients.iter().all(|client| reply(client).is_none()));
    let size = Size { width: 2, height: 1 };
    rig.server.pass_on(picture(size, &[1, 2, 3, 0, 4, 5, 6, 0])).unwrap();
    rig.server.pass_on(Answer::Failed("no memory".to_owned())).unwrap();
    let surface = shown(&clients[0]).unwrap();
    let mut row = [0; 3];
    surface.read(0, 0, &mut row);
    assert_eq!((surface.size(), row), (size, [0x03_0201, 0x06_0504, 0]));
    assert_eq!(failure(&clients[1]), "no memory");
    assert!(clients.iter().all(has_gone));
}

#[test]
fn a_picture_of_a_machine_that_lies_is_refused_or_bounded() {
    let mut rig = Rig::new();
    let client = rig.ask(&Request::Screenshot);
    rig.serve();
    // It is shorter than it says.
    rig.server.pass_on(picture(Size { width: 4095, height: 4095 }, &[0; 64])).unwrap();
    assert!(shown(&client).err().unwrap().to_string().contains("a part of the picture"));
    let content = || OwnedFd::from(atomic_file::memory().unwrap());
    for (width, height) in [(0, 1), (1, 0), (4096, 1), (u32::MAX, u32::MAX)] {
        assert!(Picture::new(Size { width, height }, content()).is_err());
    }
}

#[test]
fn an_answer_to_what_was_not_asked_is_a_lie() {
    let mut rig = Rig::new();
    assert_eq!(rig.server.pass_on(Answer::Failed(String::new())), Err(Unasked));
    let _client = rig.ask(&Request::Screenshot);
    rig.serve();
    rig.server.pass_on(Answer::Failed(String::new())).unwrap();
    assert_eq!(rig.server.pass_on(Answer::Failed(String::new())), Err(Unasked));
}

#[test]
fn a_machine_without_a_screen_is_not_asked_for_a_picture() {
    let mut rig = Rig::with_screen(false);
    let client = rig.ask(&Request::Screenshot);
    assert_eq!(rig.serve(), []);
    assert_eq!(failure(&client), "machine a has no screen: it was started without --screen");
}

#[test]
fn what_makes_no_sense_is_answered_or_ends_the_connection() {
    let mut rig = Rig::new();
    for bytes in [&b"x"[..], &[0xff; LONGEST], b"\"Explode\""] {
        let client = rig.connect();
        client.send_now(bytes, None).unwrap();
        assert_eq!(rig.serve(), []);
        assert_eq!(failure(&client), "this kite knows no such request");
    }
    let client = rig.connect();
    client.send_now(&[b' '; LONGEST + 1], None).unwrap();
    assert_eq!(rig.serve(), []);
    assert!(has_gone(&client));
    // A descriptor belongs to no request, and a second request to no connection.
    let client = rig.connect();
    client.send_now(&encode(&Request::Describe), Some(std::io::stdin().as_fd())).unwrap();
    assert_eq!(rig.serve(), []);
    assert!(has_gone(&client));
    let client = rig.ask(&Request::Screenshot);
    client.send_now(&encode(&Request::Screenshot), None).unwrap();
    assert_eq!(rig.serve().len(), 1);
    assert_eq!(rig.serve(), []);
    assert!(has_gone(&client));
    // The answer has no reader, and is none that was not asked for.
    rig.server.pass_on(Answer::Failed(String::new())).unwrap();
}

#[test]
fn clients_that_stall_make_room_after_a_while() {
    let mut rig = Rig::new();
    let silent: Vec<_> = (0..20).map(|_| rig.connect()).collect();
    let late = rig.ask(&Request::Describe);
    rig.serve();
    assert!(reply(&late).is_none(), "there is room for a few");
    assert!(rig.server.until().unwrap() <= Instant::now() + LONG);
    let mut descriptors = Vec::new();
    rig.server.descriptors(&mut descriptors);
    assert!(descriptors.len() <= 8, "more are not waited for");
    drop(descriptors);
    let mut now = Instant::now();
    while reply(&late).is_none() {
        now += LONG;
        assert!(now < Instant::now() + 10 * LONG);
        rig.server.serve(now);
    }
    assert_eq!(silent.iter().filter(|client| has_gone(client)).count(), 16);
}

#[test]
fn a_machine_that_does_not_answer_is_asked_a_few_times_and_reported() {
    let mut rig = Rig::new();
    let mut wishes = 0;
    for _ in 0..20 {
        // Who has gone may have asked.
        drop(rig.ask(&Request::Screenshot));
        wishes += rig.serve().len() + rig.serve().len();
    }
    assert_eq!(wishes, 8);
    let client = rig.ask(&Request::Screenshot);
    assert_eq!(rig.serve(), []);
    assert_eq!(failure(&client), "machine a does not answer");
    rig.server.pass_on(Answer::Failed(String::new())).unwrap();
    let client = rig.ask(&Request::Screenshot);
    assert_eq!(rig.serve().len(), 1);
    rig.server.serve(Instant::now() + LONG);
    assert_eq!(failure(&client), "machine a does not answer");
}

#[test]
fn a_pause_is_described_until_the_machine_goes_on() {
    let mut rig = Rig::new();
    let describe = |rig: &mut Rig| {
        let client = rig.ask(&Request::Describe);
        rig.serve();
        match reply(&client) {
            Some((Reply::Description(machine), None)) => machine.paused,
            other => panic!("{other:?}"),
        }
    };
    for (request, question, is_paused) in
        [(Request::Pause, Question::Pause, true), (Request::Resume, Question::Resume, false)]
    {
        let client = rig.ask(&request);
        assert_eq!(rig.serve(), [Wish::Ask(question)]);
        assert_ne!(describe(&mut rig), is_paused);
        rig.server.pass_on(Answer::Done).unwrap();
        assert!(matches!(reply(&client), Some((Reply::Done, None))));
        assert_eq!(describe(&mut rig), is_paused);
    }
    let _client = rig.ask(&Request::Pause);
    rig.serve();
    assert_eq!(rig.server.pass_on(picture(Size { width: 1, height: 1 }, &[0; 4])), Err(Unasked));
}

#[test]
fn who_stops_a_machine_waits_for_its_end_and_no_longer() {
    let mut rig = Rig::new();
    let client = rig.ask(&Request::Stop(1500));
    assert_eq!(rig.serve(), [Wish::Stop(Duration::from_millis(1500))]);
    rig.server.serve(Instant::now() + LONG);
    assert!(reply(&client).is_none() && !has_gone(&client));
    drop(rig);
    assert!(has_gone(&client));
}

#[test]
fn a_paused_machine_goes_on_to_its_end() {
    let mut rig = Rig::new();
    let _pauses = rig.ask(&Request::Pause);
    rig.serve();
    rig.server.pass_on(Answer::Done).unwrap();
    let client = rig.ask(&Request::Stop(0));
    assert_eq!(rig.serve(), [Wish::Ask(Question::Resume), Wish::Stop(Duration::ZERO)]);
    rig.server.pass_on(Answer::Done).unwrap();
    assert!(reply(&client).is_none() && !has_gone(&client));
}
