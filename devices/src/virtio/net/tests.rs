//! Packets through a real device and transport. A socket pair of datagrams stands in for a tap where none is needed.

mod limits;
mod pairs;
mod stream;
mod tap;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_net::*;

use super::*;
use crate::virtio::testing::{BUFFERS, CANARY, Driver};

const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];
const RX: usize = 0;
const TX: usize = 1;
const MERGEABLE: u64 = bit(VIRTIO_NET_F_MRG_RXBUF);
/// Where packets to be sent lie: behind the receive buffers.
const PACKETS: u64 = BUFFERS + 0x8_0000;

/// A driver, and the other end of its device's tap.
fn tap(features: u64) -> (Driver, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let file = File::from(OwnedFd::from(ours));
    let mut driver = Driver::new(|_| Box::new(Net::new("net0", Box::new(Tap::new(vec![file], None)), MAC)));
    driver.start(features);
    (driver, theirs)
}

/// A frame of `len` bytes, each different from its neighbours.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add((at % 251) as u8)).collect()
}

/// A frame with a header as a tap writes it.
fn packet(len: usize, seed: u8) -> Vec<u8> {
    [vec![0; HEADER], frame(len, seed)].concat()
}

/// Gives the device buffers as [`give`] does, and kicks it.
fn offer(driver: &mut Driver, first: u64, count: u64, len: u32) {
    give(driver, first, count, len);
    driver.kick(RX);
}

/// Sends packets of these lengths and contents, and has the device take them.
fn deliver(driver: &mut Driver, peer: &UnixDatagram, packets: &[(usize, u8)]) {
    for (len, content) in packets {
        peer.send(&packet(*len, *content)).unwrap();
    }
    driver.serve_source(0);
}

/// Gives the device `count` buffers of `len` bytes, each at its own place, from `first` on.
fn give(driver: &mut Driver, first: u64, count: u64, len: u32) {
    for at in first..first + count {
        driver.add(RX, &[(BUFFERS + at * 0x800, len, true)]);
    }
}

/// The packets that the driver has got, their headers off, in buffers at `at`.
fn received(driver: &mut Driver, at: impl Fn(u16) -> u64) -> Vec<Vec<u8>> {
    let used = driver.used(RX);
    let mut used = used.into_iter();
    let mut packets = Vec::new();
    while let Some((head, len)) = used.next() {
        let mut bytes = driver.read(at(head), len as usize);
        let count = u16::from_le_bytes([bytes[10], bytes[11]]);
        for _ in 1..count {
            let (head, len) = used.next().expect("all buffers of a packet come together");
            bytes.extend(driver.read(at(head), len as usize));
        }
        packets.push(bytes.split_off(HEADER));
    }
    packets
}

/// Where [`give`] puts the buffer that has descriptor `head`, in rings of 64 filled once.
fn place(head: u16) -> u64 {
    BUFFERS + u64::from(head) * 0x800
}

/// Sends `packet`, header and all; its head.
fn send(driver: &mut Driver, packet: &[u8]) -> u16 {
    driver.write(PACKETS, packet);
    let head = driver.add(TX, &[(PACKETS, packet.len() as u32, false)]);
    driver.kick(TX);
    head
}

/// The device is as good as new: after a reset packets go both ways.
fn works_after_reset(driver: &mut Driver, peer: &UnixDatagram) {
    while peer.recv(&mut [0; 1]).is_ok() {}
    loop {
        driver.start(MERGEABLE);
        give(driver, 0, 64, 0x800);
        driver.kick(RX);
        if driver.used(RX).is_empty() {
            break; // Nothing is left of what came before.
        }
    }
    deliver(driver, peer, &[(60, 9)]);
    assert_eq!(received(driver, place), [frame(60, 9)]);
    let head = send(driver, &packet(61, 8));
    assert_eq!(driver.used(TX), [(head, 0)]);
    let mut got = [0; 100];
    assert_eq!(peer.recv(&mut got).unwrap(), HEADER + 61);
    assert_eq!(got[HEADER..HEADER + 61], frame(61, 8));
}

#[test]
fn the_driver_reads_its_address_and_that_the_link_is_up() {
    let (mut driver, _peer) = tap(0);
    assert_eq!(driver.config(0, 6), MAC);
    assert_eq!(driver.config(6, 4), [1, 0, 1, 0]);
    assert_eq!(driver.config(12, 2), [0; 2]);
    let offered = driver.offered();
    assert_eq!(offered & bit(VIRTIO_NET_F_CSUM), 0, "a socket has no offloads");
    assert_eq!(offered & (bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ)), 0);
    assert_ne!(offered & bit(VIRTIO_NET_F_MAC), 0);
}

#[test]
fn packets_are_sent_as_they_are_whatever_their_pieces() {
    let (mut driver, peer) = tap(0);
    let sent = packet(1000, 3);
    driver.write(PACKETS, &sent);
    for cuts in [vec![1000 + 12], vec![12, 1000], vec![1; 30], vec![5, 7, 400, 0, 300]] {
        let mut parts = Vec::new();
        let mut at = 0;
        for len in cuts {
            parts.push((PACKETS + at, len as u32, false));
            at += len as u64;
        }
        parts.push((PACKETS + at, (1012 - at) as u32, false));
        let head = driver.add(TX, &parts);
        driver.kick(TX);
        assert_eq!(driver.used(TX), [(head, 0)]);
        let mut got = [0; 2000];
        let len = peer.recv(&mut got).unwrap();
        assert_eq!(got[..len], sent);
    }
}

#[test]
fn packets_are_received_whole_with_and_without_mergeable_buffers() {
    for features in [0, MERGEABLE] {
        let (mut driver, peer) = tap(features);
        give(&mut driver, 0, 32, 0x800);
        driver.want_interrupts(RX);
        driver.kick(RX);
        driver.interrupts();
        let frames: Vec<_> = [60, 1514, 64, 1400].map(|len| frame(len, len as u8)).into();
        for frame in &frames {
            peer.send(&[vec![0; HEADER], frame.clone()].concat()).unwrap();
        }
        driver.serve_source(0);
        assert_eq!(received(&mut driver, place), frames);
        assert_eq!(driver.interrupts(), 1);
    }
}

#[test]
fn a_packet_spans_many_small_mergeable_buffers() {
    let (mut driver, peer) = tap(MERGEABLE);
    offer(&mut driver, 0, 60, 100);
    deliver(&mut driver, &peer, &[(3000, 5), (1500, 6), (14, 7)]);
    assert_eq!(received(&mut driver, place), [frame(3000, 5), frame(1500, 6), frame(14, 7)]);
    assert_eq!(driver.used_index(RX), 31 + 16 + 1);
}

#[test]
fn a_packet_longer_than_all_buffers_waits_for_more() {
    let (mut driver, peer) = tap(MERGEABLE);
    offer(&mut driver, 0, 4, 1000);
    deliver(&mut driver, &peer, &[(9000, 1), (64, 2)]);
    assert_eq!(driver.used(RX), []);
    offer(&mut driver, 4, 2, 1000);
    assert_eq!(driver.used(RX), []);
    offer(&mut driver, 6, 20, 1000);
    assert_eq!(received(&mut driver, place), [frame(9000, 1), frame(64, 2)]);
}

#[test]
fn what_is_held_goes_back_when_the_device_settles() {
    let (mut driver, peer) = tap(MERGEABLE);
    offer(&mut driver, 0, 40, 0x800);
    driver.lock().drain();
    deliver(&mut driver, &peer, &[(700, 1)]);
    assert_eq!(received(&mut driver, place), [frame(700, 1)]);
}

#[test]
fn the_mtu_of_a_tap_is_offered_unless_no_link_has_so_little() {
    for (mtu, offered) in [(None, 0), (Some(0), 0), (Some(67), 0), (Some(68), 68), (Some(9000), 9000)] {
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let backend = Tap::new(vec![File::from(OwnedFd::from(ours))], mtu);
        let mut driver = Driver::new(|_| Box::new(Net::new("net0", Box::new(backend), MAC)));
        assert_eq!(driver.offered() & bit(VIRTIO_NET_F_MTU) != 0, offered != 0, "{mtu:?}");
        driver.start(if offered == 0 { 0 } else { bit(VIRTIO_NET_F_MTU) });
        assert_eq!(driver.config(10, 2), u16::to_le_bytes(offered));
    }
}
