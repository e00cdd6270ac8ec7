//! A network device between a driver and a peer that both send anything: a tap, for which a pair of sockets for
//! datagrams stands in, or a stream.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use arbitrary::{Arbitrary, Unstructured};
use devices::virtio::VirtioDevice;
use devices::virtio::net::{Backend, HEADER, Net, Stream, Tap};
use devices::virtio::testing::{BUFFERS, Driver};

use crate::{bytes, drive};

const RX: usize = 0;
const TX: usize = 1;

/// What the peer does.
#[derive(Arbitrary, Debug)]
enum Act<'a> {
    Raw(#[arbitrary(with = bytes)] &'a [u8]),
    /// What the other end takes for a frame.
    Frame(#[arbitrary(with = bytes)] &'a [u8]),
    /// A frame of so many bytes.
    Long(u16),
    /// Takes what was sent.
    Take,
    Close,
}

/// The other end.
enum Peer {
    Tap(UnixDatagram),
    Stream(UnixStream),
    Gone,
}

impl Peer {
    /// Sends bytes as they are; answers whether all of them went.
    fn send(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Tap(socket) => socket.send(bytes).is_ok(),
            Self::Stream(socket) => socket.write(bytes).is_ok_and(|len| len == bytes.len()),
            Self::Gone => false,
        }
    }

    /// Sends a frame as the device expects it.
    fn frame(&mut self, frame: &[u8]) -> bool {
        let before = match self {
            Self::Tap(_) => vec![0; HEADER],
            _ => (frame.len() as u32).to_be_bytes().to_vec(),
        };
        self.send(&[&before, frame].concat())
    }

    fn take(&mut self) {
        let mut bytes = vec![0; 1 << 16];
        match self {
            Self::Tap(socket) => while socket.recv(&mut bytes).is_ok() {},
            Self::Stream(socket) => while socket.read(&mut bytes).is_ok_and(|len| len > 0) {},
            Self::Gone => {}
        }
    }
}

/// A backend, and its other end.
fn backend(stream: bool, pairs: usize) -> (Box<dyn Backend>, Peer) {
    if stream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        return (Box::new(Stream::new(ours, None).unwrap()), Peer::Stream(theirs));
    }
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let file = File::from(OwnedFd::from(ours));
    let files = (0..pairs).map(|_| file.try_clone().unwrap()).collect();
    (Box::new(Tap::new(files, None)), Peer::Tap(theirs))
}

pub fn run(data: &[u8]) {
    let Some((options, data)) = data.split_first() else { return };
    let (backend, peer) = backend(options & 1 != 0, 1 + usize::from(options >> 1 & 1));
    let peer = RefCell::new(peer);
    // Whether the link is as good as new: a stream can be out of step, or end.
    let good = Cell::new(true);
    let host = |bytes: &[u8]| {
        let Ok(act) = Act::arbitrary(&mut Unstructured::new(bytes)) else { return };
        let mut peer = peer.borrow_mut();
        let stream = matches!(*peer, Peer::Stream(_));
        let went = match act {
            Act::Raw(bytes) => {
                peer.send(bytes);
                !stream
            }
            Act::Frame(frame) => peer.frame(frame) && frame.len() >= 14 || !stream,
            Act::Long(len) => peer.frame(&vec![0x33; len.into()]) && len >= 14 || !stream,
            Act::Take => {
                peer.take();
                true
            }
            Act::Close => {
                *peer = Peer::Gone;
                false
            }
        };
        good.set(good.get() && went);
    };
    let make = |_: &_| -> Box<dyn VirtioDevice> { Box::new(Net::new("net0", backend, [2, 0, 0, 0, 0, 1])) };
    drive(data, make, host, |driver| {
        sends(driver, &mut peer.borrow_mut());
        if good.get() {
            receives(driver, &mut peer.borrow_mut());
        }
    });
}

/// Whatever became of the link, the driver gets its packets back, if the peer takes what comes.
fn sends(driver: &mut Driver, peer: &mut Peer) {
    driver.write(BUFFERS, &[0; HEADER + 60]);
    let head = driver.add(TX, &[(BUFFERS, HEADER as u32 + 60, false)]);
    driver.kick(TX);
    for _ in 0..100 {
        peer.take();
        driver.serve_source(0);
    }
    assert_eq!(driver.used(TX), [(head, 0)]);
}

/// Behind what was sent before comes what is sent now.
fn receives(driver: &mut Driver, peer: &mut Peer) {
    const LEN: usize = 0x800;
    loop {
        let before: Vec<u16> =
            (0..32).map(|at| driver.add(RX, &[(BUFFERS + at * LEN as u64, LEN as u32, true)])).collect();
        driver.kick(RX);
        driver.serve_source(0);
        let used = driver.used(RX);
        if used.is_empty() {
            assert!(peer.frame(&[0x77; 60]), "the socket has no room though all was received");
            driver.serve_source(0);
            assert_eq!(driver.used(RX), [(before[0], HEADER as u32 + 60)]);
            assert_eq!(driver.read(BUFFERS + HEADER as u64, 60), [0x77; 60]);
            return;
        }
        driver.assert_intact();
        driver.start(0);
    }
}
