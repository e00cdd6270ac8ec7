//! The console, with a named port beside it or in its place, between a driver and a host that both say anything.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use devices::virtio::VirtioDevice;
use devices::virtio::console::{Console, Host, INPUT_LIMIT, OUTPUT_LIMIT, Port};
use devices::virtio::testing::{BUFFERS, Driver};

use crate::{bytes, drive};

/// VIRTIO_CONSOLE_F_MULTIPORT.
const MULTIPORT: u64 = 1 << 1;
const NAME: &str = "fuzz";

/// What the host does with a port.
#[derive(Arbitrary, Debug)]
enum Act<'a> {
    Send(#[arbitrary(with = bytes)] &'a [u8]),
    /// One byte, so many times.
    Flood(u8, u16),
    Take,
    Resize(u16, u16),
    Connect(bool),
    AskWhetherDrained,
}

struct Nobody;

impl Host for Nobody {
    fn output_ready(&self) {}
    fn changed(&self) {}
}

fn act(port: &Port, act: &Act<'_>) {
    let send = |bytes: &[u8]| {
        let taken = port.receive(bytes);
        assert!(taken <= bytes.len().min(INPUT_LIMIT), "{taken} bytes at once");
        assert!(taken == 0 || port.is_open(), "nobody has the port open");
    };
    match act {
        Act::Send(bytes) => send(bytes),
        Act::Flood(byte, count) => send(&vec![*byte; usize::from(*count)]),
        Act::Take => _ = take(port),
        Act::Resize(columns, rows) => port.resize(*columns, *rows),
        Act::Connect(connected) => port.connect(*connected),
        Act::AskWhetherDrained => _ = port.is_drained(),
    }
}

fn take(port: &Port) -> Vec<u8> {
    let mut output = Vec::new();
    port.take_output(&mut output);
    assert!(output.len() <= OUTPUT_LIMIT, "{} bytes of output", output.len());
    output
}

pub fn run(data: &[u8]) {
    let Some((options, data)) = data.split_first() else { return };
    let port = |name| Arc::new(Port::new(name, Box::new(Nobody)).unwrap());
    let (console, named) = (port(""), port(NAME));
    let has_console = options % 4 != 0;
    let make = |_: &_| -> Box<dyn VirtioDevice> {
        Box::new(Console::new(has_console.then(|| console.clone()), vec![named.clone()]))
    };
    let host = |bytes: &[u8]| {
        let Ok((is_named, it)) = Arbitrary::arbitrary(&mut Unstructured::new(bytes)) else { return };
        act(if is_named { &named } else { &console }, &it);
    };
    drive(data, make, host, |driver| {
        if has_console {
            carries(driver, &console, [0, 1]);
        }
        open(driver);
        carries(driver, &named, [4, 5]);
    });
}

/// Starts again with several ports, and opens the named one.
fn open(driver: &mut Driver) {
    // Each a port, an event and a value.
    const DEVICE_READY: [u8; 8] = [0, 0, 0, 0, 0, 0, 1, 0];
    const PORT_READY: [u8; 8] = [1, 0, 0, 0, 3, 0, 1, 0];
    const PORT_OPEN: [u8; 8] = [1, 0, 0, 0, 6, 0, 1, 0];
    driver.assert_intact();
    driver.start(MULTIPORT);
    let place = |head: u16| BUFFERS + 0x1000 + 0x100 * u64::from(head);
    (0..16).for_each(|head| assert_eq!(driver.add(2, &[(place(head), 0x100, true)]), head));
    for message in [DEVICE_READY, PORT_READY, PORT_OPEN] {
        driver.write(BUFFERS, &message);
        driver.add(3, &[(BUFFERS, 8, false)]);
        driver.kick(3);
        assert_eq!(driver.used(3).len(), 1);
    }
    let used = driver.used(2);
    let heard: Vec<_> = used.iter().map(|(head, len)| driver.read(place(*head), *len as usize)).collect();
    assert!(heard.iter().any(|it| it[..8] == [1, 0, 0, 0, 1, 0, 1, 0]), "no port was added: {heard:?}");
    let name = [&[1, 0, 0, 0, 7, 0, 1, 0][..], NAME.as_bytes()].concat();
    assert!(heard.contains(&name), "the port has no name: {heard:?}");
}

/// A port that the guest has open carries bytes both ways on its receive and transmit queues.
fn carries(driver: &mut Driver, port: &Port, [receive, transmit]: [usize; 2]) {
    port.connect(true);
    driver.serve_sources();
    take(port);
    driver.write(BUFFERS, b"out");
    let head = driver.add(transmit, &[(BUFFERS, 3, false)]);
    driver.kick(transmit);
    assert_eq!(driver.used(transmit), [(head, 0)]);
    assert_eq!(take(port), b"out");
    let head = driver.add(receive, &[(BUFFERS + 0x800, 16, true)]);
    driver.kick(receive);
    assert_eq!(port.receive(b"in"), 2);
    driver.serve_sources();
    assert_eq!(driver.used(receive), [(head, 2)]);
    assert_eq!(driver.read(BUFFERS + 0x800, 2), b"in");
}
