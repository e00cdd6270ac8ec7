//! A driver at one end of the device, and a host at the other.

mod control;
mod data;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::testing::{BUFFERS, Driver};
use super::control::{CONSOLE_PORT, DEVICE_READY, PORT_ADD, PORT_NAME, PORT_OPEN, PORT_READY, RESIZE};
use super::*;

/// Where the driver writes control messages, and where it has room for them.
const CONTROL: u64 = BUFFERS;
const ROOM: u64 = BUFFERS + 0x1_0000;
/// How much room it has for one.
const ROOM_LEN: u64 = 128;
/// From here on there is room for data.
const DATA: u64 = BUFFERS + 0x2_0000;

/// Counts the calls of the host's end.
#[derive(Default)]
struct HostCalls {
    output: AtomicUsize,
    changed: AtomicUsize,
}

struct Listener(Arc<HostCalls>);

impl Host for Listener {
    fn output_ready(&self) {
        self.0.output.fetch_add(1, Ordering::SeqCst);
    }

    fn changed(&self) {
        self.0.changed.fetch_add(1, Ordering::SeqCst);
    }
}

/// The host's ends of a console and of ports `a`, `b` and `c`, and the calls of each.
fn ports() -> (Vec<Arc<Port>>, Vec<Arc<HostCalls>>) {
    let port = |name| {
        let calls = Arc::<HostCalls>::default();
        (Arc::new(Port::new(name, Box::new(Listener(calls.clone()))).unwrap()), calls)
    };
    ["", "a", "b", "c"].map(port).into_iter().unzip()
}

fn console(ports: &[Arc<Port>]) -> Console {
    Console::new(Some(ports[0].clone()), ports[1..].to_vec())
}

struct Rig {
    driver: Driver,
    ports: Vec<Arc<Port>>,
    calls: Vec<Arc<HostCalls>>,
    /// Which part of the room each buffer of the control queue is.
    room: Vec<(u16, u64)>,
}

impl Rig {
    /// A device with a console, where the host is, and ports `a`, `b` and `c`, where it is not.
    fn new() -> Self {
        let (ports, calls) = ports();
        ports[0].connect(true);
        let driver = Driver::new(|_| Box::new(console(&ports)));
        Self { driver, ports, calls, room: Vec::new() }
    }

    /// A device whose driver is up and has `room` buffers for control messages.
    fn up(room: u64) -> Self {
        let mut rig = Self::new();
        rig.start(SIZE | MULTIPORT, room);
        rig
    }

    fn start(&mut self, features: u64, room: u64) {
        self.driver.start(features);
        self.room.clear();
        self.make_room(room, ROOM_LEN as u32);
    }

    fn make_room(&mut self, count: u64, len: u32) {
        for _ in 0..count {
            let at = ROOM + ROOM_LEN * (self.room.len() as u64 % 64);
            let head = self.driver.add(CONTROL_RECEIVE, &[(at, len, true)]);
            self.room.push((head, at));
        }
        self.driver.kick(CONTROL_RECEIVE);
    }

    /// The driver says this.
    fn say(&mut self, id: u32, event: u16, value: u16) {
        self.driver.write(CONTROL, &Message { id, event, value }.encode());
        let head = self.driver.add(CONTROL_TRANSMIT, &[(CONTROL, Message::LEN as u32, false)]);
        self.driver.kick(CONTROL_TRANSMIT);
        assert_eq!(self.driver.used(CONTROL_TRANSMIT), [(head, 0)]);
    }

    /// The control messages since the last call: port, event, value and what follows.
    fn messages(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let used = self.driver.used(CONTROL_RECEIVE);
        let mut messages = Vec::new();
        for (head, len) in used.into_iter().filter(|(_, len)| *len > 0) {
            let (_, at) = *self.room.iter().rev().find(|(it, _)| *it == head).unwrap();
            let bytes = self.driver.read(at, len as usize);
            let Message { id, event, value } = Message::decode(bytes[..8].try_into().unwrap());
            messages.push((id, event, value, bytes[8..].to_vec()));
        }
        messages
    }

    /// Brings every port up and forgets what was said.
    fn ready(&mut self) {
        self.say(0, DEVICE_READY, 1);
        for id in 0..4 {
            self.say(id, PORT_READY, 1);
        }
        self.messages();
    }

    /// The guest writes `len` bytes from `at` on to port `id`.
    fn print(&mut self, id: usize, at: u64, len: u32) -> u16 {
        let queue = queues_of(id)[1];
        let head = self.driver.add(queue, &[(at, len, false)]);
        self.driver.kick(queue);
        head
    }

    fn transmitted(&mut self, id: usize) -> Vec<(u16, u32)> {
        self.driver.used(queues_of(id)[1])
    }

    fn received(&mut self, id: usize) -> Vec<(u16, u32)> {
        self.driver.used(queues_of(id)[0])
    }

    /// What has come out of port `id`.
    fn output(&self, id: usize) -> Vec<u8> {
        let mut output = Vec::new();
        self.ports[id].take_output(&mut output);
        output
    }

    fn changes(&self, id: usize) -> usize {
        self.calls[id].changed.swap(0, Ordering::SeqCst)
    }
}
