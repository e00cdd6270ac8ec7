//! A real tap, where there may be one.
#![expect(unsafe_code, reason = "makes taps")]

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::*;

const OFFLOADS: u64 = bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_GUEST_TSO4);

/// A new tap with `count` queues, which goes when they are closed; nothing where none may be made.
fn new(test: &str, name: &str, count: usize) -> Option<Vec<File>> {
    let files: io::Result<Vec<_>> = (0..count).map(|_| queue(name, count > 1)).collect();
    files.map_err(|error| println!("skipped: {test}: cannot make a tap: {error}")).ok()
}

fn queue(name: &str, several: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    // SAFETY: integers and characters, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives during the call.
    let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    let size = HEADER as libc::c_int;
    // SAFETY: the integer lives during the call.
    let sized = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) };
    // SAFETY: a new socket of the kernel's.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request lives during the call.
    let up = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &request) };
    let error = io::Error::last_os_error();
    // SAFETY: it was opened above and nobody else knows it.
    unsafe { libc::close(socket) };
    if attached < 0 || sized < 0 || up < 0 { Err(error) } else { Ok(file) }
}

fn start(files: Vec<File>, features: u64) -> Driver {
    let mut driver = Driver::new(|_| Box::new(Net::new("net0", Box::new(Tap::new(files, None)), MAC)));
    driver.start(features);
    driver
}

/// The statistic `name` of interface `tap`.
fn statistic(tap: &str, name: &str) -> u64 {
    let path = format!("/sys/class/net/{tap}/statistics/{name}");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// A broadcast frame of no protocol that anybody knows.
fn broadcast(len: usize) -> Vec<u8> {
    let mut packet = packet(len, 0);
    packet[HEADER..HEADER + 6].fill(0xff);
    packet[HEADER + 6..HEADER + 12].copy_from_slice(&MAC);
    packet[HEADER + 12..HEADER + 14].copy_from_slice(&[0x88, 0xb5]);
    packet
}

#[test]
fn a_real_tap_offers_offloads_and_takes_packets_but_no_nonsense() {
    let name = "kitet0";
    let test = "a_real_tap_offers_offloads_and_takes_packets_but_no_nonsense";
    let Some(files) = new(test, name, 1) else { return };
    let mut driver = start(files, MERGEABLE | OFFLOADS);
    send(&mut driver, &broadcast(100));
    assert_eq!(statistic(name, "rx_packets"), 1);
    // A checksum or a segment size that lies outside the packet, and a kind of segment that there isn't.
    for (at, bytes) in [(0, &[1u8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..]), (1, &[0x7f]), (1, &[1])] {
        let mut nonsense = broadcast(100);
        nonsense[at..at + bytes.len()].copy_from_slice(bytes);
        let head = send(&mut driver, &nonsense);
        assert_eq!(driver.used(TX).last(), Some(&(head, 0)));
    }
    send(&mut driver, &broadcast(1514));
    assert_eq!(statistic(name, "rx_packets"), 2);
    assert_eq!(driver.config(6, 1), [1]);
}

#[test]
fn a_real_tap_delivers_what_the_host_sends() {
    let name = "kitet1";
    let Some(files) = new("a_real_tap_delivers_what_the_host_sends", name, 1) else { return };
    let mut driver = start(files, MERGEABLE | OFFLOADS);
    give(&mut driver, 0, 60, 0x800);
    driver.kick(RX);
    let command = ["link", "set", name, "address", "02:00:00:00:00:77"];
    let address = std::process::Command::new("ip").args(command).status();
    if !address.is_ok_and(|status| status.success()) {
        println!("skipped: a_real_tap_delivers_what_the_host_sends: no ip(8)");
        return;
    }
    // The guest asks who has an address of the host's, and is told.
    let command = ["addr", "add", "198.51.100.1/24", "dev", name];
    assert!(std::process::Command::new("ip").args(command).status().unwrap().success());
    let mut question = broadcast(42);
    question[HEADER + 12..HEADER + 14].copy_from_slice(&[8, 6]);
    let arp = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 1, 2, 3, 198, 51, 100, 2, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1];
    question[HEADER + 14..HEADER + 42].copy_from_slice(&arp);
    send(&mut driver, &question);
    driver.serve_source(0);
    let answers = received(&mut driver, place);
    let answer = answers.iter().find(|frame| frame[12..14] == [8, 6]).expect("an answer");
    assert_eq!(answer[..12], [2, 0, 0, 1, 2, 3, 2, 0, 0, 0, 0, 0x77]);
    assert_eq!(answer[20..22], [0, 2], "it is an ARP reply");
}

#[test]
fn a_real_tap_that_is_removed_is_link_down() {
    let name = "kitet2";
    let Some(files) = new("a_real_tap_that_is_removed_is_link_down", name, 1) else { return };
    let mut driver = start(files, MERGEABLE);
    give(&mut driver, 0, 8, 0x800);
    driver.kick(RX);
    let removed = std::process::Command::new("ip").args(["link", "del", name]).status();
    if !removed.is_ok_and(|status| status.success()) {
        println!("skipped: a_real_tap_that_is_removed_is_link_down: no ip(8)");
        return;
    }
    driver.serve_source(0);
    assert_eq!(driver.config(6, 2), [0; 2]);
    let head = send(&mut driver, &broadcast(100));
    assert_eq!(driver.used(TX), [(head, 0)]);
}

#[test]
fn a_real_tap_attaches_and_detaches_its_second_queue() {
    let name = "kitet3";
    let Some(files) = new("a_real_tap_attaches_and_detaches_its_second_queue", name, 2) else { return };
    let mut driver = start(files, bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ));
    for pairs in [1, 2, 2, 1] {
        driver.write(PACKETS, &[4, 0, pairs, 0]);
        driver.add(4, &[(PACKETS, 4, false), (PACKETS + 64, 1, true)]);
        driver.kick(4);
        assert_eq!(driver.read(PACKETS + 64, 1), [0]);
        let second = format!("/sys/class/net/{name}/queues/tx-1");
        assert_eq!(std::path::Path::new(&second).exists(), pairs == 2, "{pairs} pairs");
    }
}
