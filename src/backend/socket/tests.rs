//! A client at the socket, and a driver at the other end of the device.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use devices::virtio::console::Console;
use devices::virtio::testing::{BUFFERS, Driver};

use super::*;

/// Feature MULTIPORT.
const MULTIPORT: u64 = 2;
/// The queues of control messages, and those of port 1, as the driver sees them.
const CONTROL_RECEIVE: usize = 2;
const CONTROL_SEND: usize = 3;
const RECEIVE: usize = 4;
const SEND: usize = 5;
const DATA: u64 = BUFFERS + 0x1_0000;
/// Nothing here takes that long; a test that hangs is to fail.
const HANG: Duration = Duration::from_secs(60);

struct Guest(Driver);

impl Guest {
    /// A driver that has port 1 ready.
    fn new(ports: &Ports) -> Self {
        let mut driver = Driver::new(|_| Box::new(Console::new(None, ports.ports().to_vec())));
        driver.start(MULTIPORT);
        let mut guest = Self(driver);
        guest.say(3, 1);
        guest
    }

    /// Says `event` of port 1, 3 that it is ready and 6 that it is open.
    fn say(&mut self, event: u8, value: u8) {
        self.0.write(BUFFERS, &[1, 0, 0, 0, event, 0, value, 0]);
        self.0.add(CONTROL_SEND, &[(BUFFERS, 8, false)]);
        self.0.kick(CONTROL_SEND);
    }

    /// Whether port 1 is said to be open on the host's side, once that is said.
    fn hears(&mut self) -> bool {
        loop {
            self.0.add(CONTROL_RECEIVE, &[(BUFFERS + 0x100, 64, true)]);
            self.0.kick(CONTROL_RECEIVE);
            let used = self.until(|driver| Some(driver.used(CONTROL_RECEIVE)).filter(|it| !it.is_empty()));
            assert_eq!(used.len(), 1);
            let message = self.0.read(BUFFERS + 0x100, 8);
            if message[4] == 6 {
                return message[6] == 1;
            }
        }
    }

    /// Serves the device until `wanted` is there.
    fn until<T>(&mut self, mut wanted: impl FnMut(&mut Driver) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.0.serve_source(0);
            if let Some(it) = wanted(&mut self.0) {
                return it;
            }
            assert!(start.elapsed() < HANG, "it does not come");
            std::thread::yield_now();
        }
    }

    fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            self.0.add(RECEIVE, &[(DATA, 4096, true)]);
            self.0.kick(RECEIVE);
            let used = self.until(|driver| driver.used(RECEIVE).pop());
            bytes.extend(self.0.read(DATA, used.1 as usize));
        }
        bytes
    }

    fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(0x8000) {
            self.0.write(DATA, part);
            self.0.add(SEND, &[(DATA, part.len() as u32, false)]);
            self.0.kick(SEND);
            self.until(|driver| driver.used(SEND).pop());
        }
    }
}

fn open(folder: &Path) -> (Ports, std::path::PathBuf) {
    let path = folder.join("socket");
    let mut ports = Ports::open(&[&PortSpec { name: "agent".to_owned(), path: path.clone() }]).unwrap();
    ports.start().unwrap();
    (ports, path)
}

/// A driver of port 1, the socket's path, and what both last as long as.
fn connected() -> (Guest, std::path::PathBuf, impl Sized) {
    let folder = tempfile::tempdir().unwrap();
    let (ports, path) = open(folder.path());
    (Guest::new(&ports), path, (ports, folder))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|it| (it % 251) as u8).collect()
}

#[test]
fn nothing_that_exists_is_overwritten_and_the_socket_goes_with_kite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("there");
    let spec = PortSpec { name: "a".to_owned(), path: path.clone() };
    let refused = || Ports::open(&[&spec]).map(|_| ()).unwrap_err().to_string();
    fs::write(&path, "precious").unwrap();
    assert!(refused().contains("there is something at that path"), "{}", refused());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    symlink("nowhere", &path).unwrap();
    assert!(refused().contains("there is something at that path"));
    fs::remove_file(&path).unwrap();
    let ports = Ports::open(&[&spec]).unwrap();
    assert!(refused().contains("there is something at that path"));
    drop(ports);
    assert!(!path.exists());
    // Another's socket at the same path stays.
    let ports = Ports::open(&[&spec]).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(ports);
    assert!(path.exists());
}

#[test]
fn two_ports_of_one_name_are_refused_and_leave_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let spec = |file| PortSpec { name: "a".to_owned(), path: folder.path().join(file) };
    let error = Ports::open(&[&spec("1"), &spec("2")]).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "two ports are named a: name one another");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_client_and_the_guest_talk_and_each_hears_when_the_other_goes() {
    let (mut guest, path, _ports) = connected();
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        assert!(guest.hears());
        client.write_all(b"request").unwrap();
        guest.say(6, 1);
        assert_eq!(guest.receive(7), b"request");
        guest.send(b"answer");
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        drop(client);
        assert!(!guest.hears());
        guest.say(6, 0);
    }
}

#[test]
fn what_a_client_sent_before_it_went_is_read_and_then_the_next_one_served() {
    let (mut guest, path, _ports) = connected();
    guest.say(6, 1);
    let first = bytes(60_000);
    let mut client = UnixStream::connect(&path).unwrap();
    assert!(guest.hears());
    client.write_all(&first).unwrap();
    drop(client);
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    assert!(guest.receive(first.len()) == first);
    assert!(!guest.hears());
    assert!(guest.hears());
    assert_eq!(guest.receive(6), b"second");
}

#[test]
fn a_client_that_goes_before_the_guest_comes_takes_its_bytes_along() {
    let (mut guest, path, _ports) = connected();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"early").unwrap();
    assert!(guest.hears());
    drop(client);
    assert!(!guest.hears());
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"in time").unwrap();
    assert!(guest.hears());
    guest.say(6, 1);
    assert_eq!(guest.receive(7), b"in time");
}

#[test]
fn a_client_that_says_no_more_still_gets_its_answer() {
    let (mut guest, path, _ports) = connected();
    guest.say(6, 1);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"request").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(guest.hears());
    assert_eq!(guest.receive(7), b"request");
    guest.send(b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn much_goes_both_ways_through_little_room() {
    let (mut guest, path, _ports) = connected();
    guest.say(6, 1);
    let data = bytes(2 << 20);
    let mut client = UnixStream::connect(&path).unwrap();
    assert!(guest.hears());
    let sent = data.clone();
    let mut sender = client.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(&sent).unwrap());
    assert!(guest.receive(data.len()) == data);
    sending.join().unwrap();
    let len = data.len();
    let reading = std::thread::spawn(move || {
        let mut read = vec![0; len];
        client.read_exact(&mut read).unwrap();
        read
    });
    guest.send(&data);
    assert!(reading.join().unwrap() == data);
}
