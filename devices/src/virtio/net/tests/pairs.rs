//! Several queue pairs and the control queue.

use super::*;
use crate::device::Device as _;
use crate::virtio::testing::UP;

const MANY: u64 = bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ);

/// Two socket pairs that are told how many are used.
struct Two(Tap);

impl Backend for Two {
    fn features(&self) -> u64 {
        0
    }
    fn pairs(&self) -> u16 {
        2
    }
    fn sources(&self) -> Vec<Source<'_>> {
        self.0.sources()
    }
    fn receive(&mut self, pair: usize, room: Room<'_>) -> io::Result<usize> {
        self.0.receive(pair, room)
    }
    fn send(&mut self, pair: usize, memory: &GuestMemory, chains: &[Chain]) -> io::Result<usize> {
        self.0.send(pair, memory, chains)
    }
}

/// A device with two pairs, and the other end of each.
fn device() -> (Net, [UnixDatagram; 2]) {
    let pairs = [(); 2].map(|()| UnixDatagram::pair().unwrap());
    let (mut files, mut peers) = (Vec::new(), Vec::new());
    for (ours, theirs) in pairs {
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        files.push(File::from(OwnedFd::from(ours)));
        peers.push(theirs);
    }
    (Net::new("net0", Box::new(Two(Tap::new(files, None))), MAC), peers.try_into().unwrap())
}

fn two(features: u64) -> (Driver, [UnixDatagram; 2]) {
    let (device, peers) = device();
    let mut driver = Driver::new(|_| Box::new(device));
    driver.start(features);
    (driver, peers)
}

/// Gives the control queue `index` a command; the answer.
fn command(driver: &mut Driver, index: usize, bytes: &[u8]) -> u8 {
    driver.write(PACKETS, bytes);
    driver.write(PACKETS + 64, &[CANARY]);
    let head = driver.add(index, &[(PACKETS, bytes.len() as u32, false), (PACKETS + 64, 1, true)]);
    driver.kick(index);
    assert_eq!(driver.used(index), [(head, 1)]);
    driver.read(PACKETS + 64, 1)[0]
}

#[test]
fn packets_come_to_a_second_pair_once_it_is_used_and_no_longer() {
    let (mut driver, peers) = two(MANY);
    assert_eq!(driver.config(8, 2), [2, 0]);
    for at in 0..8 {
        driver.add(2, &[(place(at), 0x800, true)]);
    }
    driver.kick(2);
    peers[1].send(&packet(100, 1)).unwrap();
    driver.serve_source(1);
    assert_eq!(driver.used(2), []);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(driver.used(2), [(0, 112)], "what came before isn't forgotten");
    driver.write(PACKETS, &packet(64, 2));
    driver.add(3, &[(PACKETS, 76, false)]);
    driver.kick(3);
    assert_eq!(peers[1].recv(&mut [0; 100]).unwrap(), 76);
    assert_eq!(command(&mut driver, 4, &[4, 0, 1, 0]), 0);
    peers[1].send(&packet(100, 1)).unwrap();
    driver.serve_source(1);
    driver.kick(2);
    assert_eq!(driver.used(2), []);
}

#[test]
fn commands_that_are_wrong_or_unknown_are_refused() {
    let (mut driver, _peers) = two(MANY);
    let wrong: [&[u8]; 9] = [
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0, 0x80],
        &[4, 0, 1],
        &[4],
        &[4, 1, 1, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[0xff; 40],
    ];
    for bytes in wrong {
        assert_eq!(command(&mut driver, 4, bytes), 1, "{bytes:x?}");
    }
    driver.write(PACKETS, &[4, 0, 2, 0]);
    let mute = driver.add(4, &[(PACKETS, 4, false)]);
    let empty = driver.add(4, &[(PACKETS + 64, 1, true)]);
    driver.kick(4);
    assert_eq!(driver.used(4), [(mute, 0), (empty, 1)]);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(driver.status(), UP);
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let (mut driver, _peers) = two(bit(VIRTIO_NET_F_CTRL_VQ));
    assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), 1);
    assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 0);
    let (mut driver, _peers) = two(0);
    driver.add(4, &[(PACKETS, 4, false), (PACKETS + 64, 1, true)]);
    driver.kick(4);
    assert_eq!(driver.used(4), []);
}

#[test]
fn a_loaded_device_uses_as_many_pairs_as_the_saved_one() {
    let (mut driver, _peers) = two(MANY);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    let (new, peers) = device();
    driver.reload(|_| Box::new(new)).unwrap();
    driver.add(2, &[(PACKETS, 0x800, true)]);
    driver.kick(2);
    peers[1].send(&packet(100, 1)).unwrap();
    driver.serve_source(1);
    assert_eq!(driver.used(2), [(0, 112)]);
    // Where there is one pair, that state is refused.
    let saved = driver.lock().save().unwrap();
    let one = Driver::new(|_| Box::new(Net::new("net0", Box::new(Tap::new(Vec::new(), None)), MAC)));
    one.lock().load(saved).unwrap_err();
}
