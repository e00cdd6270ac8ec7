//! What a hostile driver does, and floods.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::virtio::testing::{NEEDS_RESET, UP};

#[test]
fn a_full_ring_lets_packets_flow_again_once_there_are_buffers() {
    for features in [0, MERGEABLE] {
        let (mut driver, peer) = tap(features);
        let mut sent = 0u8;
        let mut flood = || {
            while peer.send(&packet(200, sent)).is_ok() {
                sent = sent.wrapping_add(1);
            }
        };
        flood();
        driver.serve_source(0);
        assert_eq!(driver.used(RX), []);
        let mut got = 0;
        for _ in 0..20 {
            offer(&mut driver, 0, 64, 0x800);
            for received in received(&mut driver, place) {
                assert_eq!(received, frame(200, got as u8), "none is lost, none comes twice");
                got += 1;
            }
            flood();
        }
        assert!(got >= 64, "{got} packets");
        assert_eq!(driver.status(), UP);
        works_after_reset(&mut driver, &peer);
    }
}

/// A backend that always has a packet of 200 bytes; it counts them.
struct Endless(OwnedFd, Arc<AtomicUsize>);

impl Backend for Endless {
    fn features(&self) -> u64 {
        0
    }
    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.0.as_fd())]
    }
    fn receive(&mut self, _: usize, _: Room<'_>) -> io::Result<usize> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(200)
    }
    fn send(&mut self, _: usize, _: &GuestMemory, chains: &[Chain]) -> io::Result<usize> {
        Ok(chains.len())
    }
}

#[test]
fn an_endless_flood_is_served_a_rings_worth_at_a_time() {
    let count = Arc::new(AtomicUsize::new(0));
    let backend = Endless(UnixDatagram::unbound().unwrap().into(), count.clone());
    let mut driver = Driver::new(|_| Box::new(Net::new("net0", Box::new(backend), MAC)));
    driver.start(0);
    for len in [100, 200] {
        // The flood doesn't fit into the first buffer, which is kept, so that its packets are lost without end.
        driver.add(RX, &[(BUFFERS, len, true)]);
        assert!(driver.lock().serve_source(0), "there is more");
        assert_eq!(driver.lock().take_unserved(), [RX]);
        assert_eq!(count.swap(0, Ordering::Relaxed), usize::from(QUEUE_SIZE));
    }
    assert_eq!(driver.used(RX), []);
    driver.start(0);
    offer(&mut driver, 0, 64, 0x800);
    assert_eq!(driver.used(RX).len(), 64);
    assert_eq!(count.load(Ordering::Relaxed), 64);
}

#[test]
fn packets_of_a_wrong_length_are_dropped_and_the_next_goes_out() {
    let (mut driver, peer) = tap(0);
    let good = packet(100, 1);
    driver.write(PACKETS, &good);
    let len = good.len() as u32;
    let wrong: [&[(u64, u32, bool)]; 8] = [
        &[(PACKETS, 0, false)],
        &[(PACKETS, 1, false)],
        &[(PACKETS, 11, false)],
        &[(PACKETS, 12, false)],
        &[(PACKETS, 25, false)],
        &[(PACKETS, 65563, false)],
        &[(PACKETS, 0x4_0000, false), (PACKETS, 0x4_0000, false)],
        &[(PACKETS, 2000, true)],
    ];
    let mut heads: Vec<_> = wrong.iter().map(|parts| driver.add(TX, parts)).collect();
    heads.push(driver.add(TX, &[(PACKETS, len, false)]));
    driver.kick(TX);
    let used: Vec<_> = heads.into_iter().map(|head| (head, 0)).collect();
    assert_eq!(driver.used(TX), used);
    let mut got = [0; 200];
    assert_eq!(peer.recv(&mut got).unwrap(), good.len());
    assert_eq!(got[..good.len()], good);
    assert_eq!(peer.recv(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let rest = driver.read(PACKETS + u64::from(len), 2000);
    assert!(rest.iter().all(|byte| *byte == CANARY), "the writable chain is as it was");
}

#[test]
fn buffers_too_small_for_a_header_are_given_back_empty() {
    for features in [0, MERGEABLE] {
        let (mut driver, peer) = tap(features);
        for (at, len) in [(0, 0), (1, 1), (2, 11)] {
            driver.add(RX, &[(place(at), len, true)]);
        }
        driver.add(RX, &[(place(3), 2000, false)]);
        let good = driver.add(RX, &[(place(4), 12, true), (place(5), 1000, true)]);
        driver.kick(RX);
        deliver(&mut driver, &peer, &[(500, 1)]);
        assert_eq!(driver.used(RX), [(0, 0), (1, 0), (2, 0), (3, 0), (good, 512)]);
        assert_eq!(driver.read(place(4) + 10, 2), [1, 0], "one buffer");
        assert_eq!(driver.read(place(5), 500), frame(500, 1));
        let untouched = [(place(0), 0x2000), (place(4) + 12, 0x800 - 12), (place(5) + 500, 1000)];
        for (address, len) in untouched {
            assert!(driver.read(address, len).iter().all(|byte| *byte == CANARY), "{address:#x}");
        }
        works_after_reset(&mut driver, &peer);
    }
}

#[test]
fn buffers_outside_ram_need_a_reset_and_nothing_is_received() {
    for bad in [1 << 20, (1 << 20) - 4, 3 << 20, u64::MAX - 3] {
        let (mut driver, peer) = tap(MERGEABLE);
        driver.add(RX, &[(bad, 2000, true)]);
        driver.interrupts();
        peer.send(&packet(100, 1)).unwrap();
        driver.kick(RX);
        assert_eq!(driver.status(), UP | NEEDS_RESET, "{bad:#x}");
        assert_eq!(driver.interrupts(), 1);
        driver.kick(TX);
        driver.serve_source(0);
        assert_eq!((driver.used(RX), driver.interrupts()), (vec![], 0));
        // What came for the driver that was is still in the tap.
        driver.start(MERGEABLE);
        offer(&mut driver, 0, 4, 0x800);
        assert_eq!(received(&mut driver, place), [frame(100, 1)]);
        works_after_reset(&mut driver, &peer);
    }
}

#[test]
fn a_packet_too_long_for_its_one_buffer_is_dropped_and_the_next_comes() {
    let (mut driver, peer) = tap(0);
    offer(&mut driver, 0, 2, 200);
    deliver(&mut driver, &peer, &[(189, 1), (188, 2)]);
    assert_eq!(received(&mut driver, place), [frame(188, 2)]);
    assert_eq!(driver.read(place(0) + 200, 0x600), vec![CANARY; 0x600]);
}

#[test]
fn a_packet_too_long_for_the_whole_ring_is_dropped_and_the_next_comes() {
    let (mut driver, peer) = tap(MERGEABLE);
    offer(&mut driver, 0, 64, 20);
    deliver(&mut driver, &peer, &[(1300, 1), (50, 2)]);
    assert_eq!(received(&mut driver, place), [frame(50, 2)]);
}

#[test]
fn reset_forgets_what_is_held() {
    let (mut driver, peer) = tap(MERGEABLE);
    offer(&mut driver, 0, 3, 1000);
    deliver(&mut driver, &peer, &[(9000, 1)]);
    for _ in 0..1000 {
        driver.start(MERGEABLE);
    }
    deliver(&mut driver, &peer, &[(100, 1)]);
    assert_eq!(driver.used_index(RX), 0);
    works_after_reset(&mut driver, &peer);
}

#[test]
fn buffers_of_many_pieces_are_filled_in_order() {
    let (mut driver, peer) = tap(MERGEABLE);
    for at in 0..4 {
        let piece = |n: u64| (place(at) + 2 * n, 2, true);
        driver.add(RX, &(0..16).map(piece).collect::<Vec<_>>());
    }
    driver.kick(RX);
    deliver(&mut driver, &peer, &[(110, 1)]);
    let at = |head: u16| place(head / 16);
    assert_eq!(received(&mut driver, at), [frame(110, 1)]);
}
