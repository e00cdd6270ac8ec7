//! The stream backend, and peers that break its framing.

use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
};

use super::*;
use crate::virtio::testing::UP;

fn stream(features: u64) -> (Driver, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut driver =
        Driver::new(|_| Box::new(Net::new("net0", Box::new(Stream::new(ours, None).unwrap()), MAC)));
    driver.start(features | bit(VIRTIO_NET_F_STATUS));
    (driver, theirs)
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// Whether an interrupt said that the configuration changed, which is acknowledged.
fn told_of_config(driver: &mut Driver) -> bool {
    let cause = driver.get(VIRTIO_MMIO_INTERRUPT_STATUS);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, cause);
    driver.interrupts() > 0 && cause & VIRTIO_MMIO_INT_CONFIG != 0
}

fn assert_down(driver: &mut Driver) {
    assert_eq!(driver.config(6, 2), [0; 2], "the link is down");
    assert!(told_of_config(driver), "the driver is told");
    let head = send(driver, &packet(100, 1));
    assert_eq!(driver.used(TX), [(head, 0)], "what is sent is dropped");
    driver.serve_source(0);
    driver.kick(RX);
    assert_eq!(driver.used(RX), []);
    assert!(!told_of_config(driver), "once");
    let generation = driver.lock().generation();
    assert_eq!((generation, driver.status()), (1, UP));
}

#[test]
fn no_offloads_are_offered_but_long_packets() {
    let (mut driver, _peer) = stream(0);
    assert_eq!(driver.offered() & 0x7f83, 0);
    assert_ne!(driver.offered() & bit(VIRTIO_NET_F_MTU), 0);
    assert_eq!(driver.config(10, 2), 65520u16.to_le_bytes());
}

#[test]
fn frames_go_both_ways_whole() {
    for features in [0, MERGEABLE] {
        let (mut driver, mut peer) = stream(features);
        give(&mut driver, 0, 60, 0x800);
        driver.kick(RX);
        let frames: Vec<_> = [14, 60, 1514, 2036].map(|len| frame(len, len as u8)).into();
        let bytes: Vec<_> = frames.iter().flat_map(|frame| framed(frame)).collect();
        let (first, second) = bytes.split_at(100);
        peer.write_all(first).unwrap();
        driver.serve_source(0);
        peer.write_all(second).unwrap();
        driver.serve_source(0);
        assert_eq!(received(&mut driver, place), frames);
        for frame in &frames {
            send(&mut driver, &[vec![0; HEADER], frame.clone()].concat());
        }
        assert_eq!(driver.used(TX).len(), frames.len());
        let mut got = vec![0; bytes.len()];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes);
    }
}

#[test]
fn the_longest_frame_spans_buffers() {
    let (mut driver, mut peer) = stream(MERGEABLE);
    give(&mut driver, 0, 64, 0x800);
    driver.kick(RX);
    peer.write_all(&framed(&frame(65535, 1))).unwrap();
    driver.serve_source(0);
    assert_eq!(received(&mut driver, place), [frame(65535, 1)]);
}

#[test]
fn what_the_peer_cannot_take_waits_in_the_ring_and_no_frame_is_torn() {
    let (mut driver, mut peer) = stream(0);
    let sent = packet(60_000, 7);
    driver.write(PACKETS, &sent);
    for _ in 0..64 {
        driver.add(TX, &[(PACKETS, sent.len() as u32, false)]);
    }
    driver.kick(TX);
    let at_once = driver.used(TX).len();
    assert!((1..64).contains(&at_once), "{at_once} frames");
    let mut done = at_once;
    let mut got: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 50_001];
    loop {
        match peer.read(&mut chunk) {
            Ok(count) => got.extend(&chunk[..count]),
            Err(_) if done == 64 && got.len() == 64 * 60_004 => break,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        driver.serve_source(0);
        done += driver.used(TX).len();
    }
    let expected = framed(&sent[HEADER..]);
    assert!(got.chunks(60_004).all(|chunk| chunk == expected));
}

#[test]
fn a_peer_that_breaks_the_framing_takes_the_link_down() {
    for length in [0, 13, 65536, 0x7fff_ffff, 0xffff_ffff_u32] {
        let (mut driver, mut peer) = stream(MERGEABLE);
        give(&mut driver, 0, 8, 0x800);
        driver.kick(RX);
        driver.interrupts();
        peer.write_all(&length.to_be_bytes()).unwrap();
        peer.write_all(&[0; 100]).unwrap();
        driver.serve_source(0);
        assert_down(&mut driver);
    }
}

#[test]
fn a_peer_that_goes_takes_the_link_down_after_its_last_whole_frame() {
    for half in [0, 3, 4, 50] {
        let (mut driver, mut peer) = stream(MERGEABLE);
        give(&mut driver, 0, 8, 0x800);
        driver.kick(RX);
        driver.interrupts();
        let whole = framed(&frame(100, 1));
        peer.write_all(&whole).unwrap();
        peer.write_all(&whole[..half]).unwrap();
        drop(peer);
        driver.serve_source(0);
        assert_eq!(received(&mut driver, place), [frame(100, 1)]);
        assert_down(&mut driver);
    }
}

#[test]
fn a_peer_that_is_gone_when_the_guest_sends_takes_the_link_down() {
    let (mut driver, peer) = stream(0);
    driver.interrupts();
    drop(peer);
    let head = send(&mut driver, &packet(100, 1));
    assert_eq!(driver.used(TX), [(head, 0)]);
    assert_down(&mut driver);
}

#[test]
fn a_flood_waits_in_the_socket_until_there_are_buffers() {
    let (mut driver, mut peer) = stream(MERGEABLE);
    let one = framed(&frame(200, 1));
    let mut sent = 0;
    let mut rest = Vec::new();
    let mut flood = |peer: &mut UnixStream| {
        for _ in 0..10_000 {
            if rest.is_empty() {
                rest.clone_from(&one);
            }
            match peer.write(&rest) {
                Ok(count) => drop(rest.drain(..count)),
                Err(_) => return,
            }
            sent += 1;
        }
    };
    flood(&mut peer);
    driver.serve_source(0);
    assert_eq!(driver.used(RX), []);
    let mut got = 0;
    for _ in 0..100 {
        give(&mut driver, 0, 64, 0x800);
        driver.kick(RX);
        let frames = received(&mut driver, place);
        assert!(frames.iter().all(|it| *it == frame(200, 1)));
        got += frames.len();
        flood(&mut peer);
    }
    assert_eq!(got, 6400, "every buffer got a packet");
}
