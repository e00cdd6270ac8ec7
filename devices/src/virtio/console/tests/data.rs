//! Bytes both ways: none lost, none twice, and no more than there is room for.

use std::sync::{Mutex, OnceLock, Weak};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::super::testing::{CANARY, RAM, UP, alone, files_and_threads, heap};
use super::*;

#[test]
fn output_goes_to_its_port_and_wakes_the_host_once() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.ports[2].connect(true);
    rig.driver.serve_source(2);
    rig.driver.write(DATA, b"hello world");
    rig.print(0, DATA, 5);
    rig.print(0, DATA + 5, 6);
    rig.print(2, DATA + 6, 5);
    assert_eq!(rig.calls[0].output.load(Ordering::SeqCst), 1);
    assert_eq!((rig.output(0), rig.output(2)), (b"hello world".to_vec(), b"world".to_vec()));
    assert_eq!((rig.transmitted(0).len(), rig.transmitted(2).len()), (2, 1));
}

#[test]
fn output_for_nobody_is_thrown_away() {
    let mut rig = Rig::up(32);
    rig.ready();
    let head = rig.print(1, DATA, 1000);
    assert_eq!((rig.transmitted(1), rig.output(1)), (vec![(head, 0)], vec![]));
}

#[test]
fn output_that_the_host_does_not_take_stays_in_the_ring_until_it_does() {
    let mut rig = Rig::up(32);
    rig.ready();
    let expected: Vec<u8> = (0..5 * 40_000u32).map(|it| (it % 251) as u8).collect();
    rig.driver.write(DATA, &expected);
    let heads: Vec<_> = (0..5).map(|it| rig.print(0, DATA + it * 40_000, 40_000)).collect();
    assert_eq!(rig.transmitted(0), [(heads[0], 0)]);
    // A kick makes no room.
    rig.driver.kick(1);
    assert_eq!(rig.transmitted(0), []);
    let mut output = Vec::new();
    let mut rounds = 0;
    while output.len() < expected.len() && rounds < 10 {
        let part = rig.output(0);
        assert!(part.len() <= OUTPUT_LIMIT);
        output.extend(part);
        rig.driver.serve_source(0);
        rounds += 1;
    }
    assert_eq!((output == expected, rounds), (true, 4));
    assert_eq!(rig.transmitted(0).len(), 4);
}

/// A host's end that takes output the moment that there is some.
#[derive(Default)]
struct Quick {
    port: OnceLock<Weak<Port>>,
    output: Mutex<Vec<u8>>,
}

impl Host for Arc<Quick> {
    fn output_ready(&self) {
        let port = self.port.get().and_then(Weak::upgrade).unwrap();
        port.take_output(&mut self.output.lock().unwrap());
    }

    fn changed(&self) {}
}

#[test]
fn a_host_that_takes_output_while_the_device_looks_gets_all_of_it() {
    let quick = Arc::<Quick>::default();
    let port = Arc::new(Port::new("", Box::new(quick.clone())).unwrap());
    quick.port.set(Arc::downgrade(&port)).unwrap();
    port.connect(true);
    let mut driver = Driver::new(|_| Box::new(Console::new(Some(port.clone()), Vec::new())));
    driver.start(SIZE);
    let expected: Vec<u8> = (0..200_000u32).map(|it| (it % 251) as u8).collect();
    driver.write(DATA, &expected);
    let head = driver.add(1, &[(DATA, expected.len() as u32, false)]);
    driver.kick(1);
    // As a thread does: for as long as there is news.
    let is_told = || poll(&mut [PollFd::new(port.event(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1);
    for _ in 0..10 {
        if is_told() {
            driver.serve_source(0);
        }
    }
    assert!(*quick.output.lock().unwrap() == expected && !is_told());
    assert_eq!(driver.used(1), [(head, 0)]);
}

#[test]
fn a_chain_of_any_length_takes_bounded_memory() {
    let mut rig = Rig::up(32);
    rig.ready();
    // 32 MiB, the same megabyte again and again.
    rig.driver.add(1, &[(RAM[1].0, RAM[1].1 as u32, false); 32]);
    let (total, peak) = heap::peak(|| {
        rig.driver.kick(1);
        let (mut total, mut output) = (0, Vec::new());
        for _ in 0..1000 {
            output.clear();
            rig.ports[0].take_output(&mut output);
            total += output.len();
            rig.driver.serve_source(0);
        }
        total
    });
    assert_eq!((total, rig.transmitted(0).len()), (32 << 20, 1));
    assert!(peak < 1 << 18, "{peak} bytes");
}

#[test]
fn who_comes_gets_nothing_that_was_written_to_who_was_there_before() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.ports[1].connect(true);
    rig.driver.serve_source(1);
    rig.print(1, DATA, 50_000);
    rig.print(1, DATA, 50_000);
    assert_eq!(rig.transmitted(1).len(), 1);
    rig.ports[1].connect(false);
    rig.ports[1].connect(true);
    rig.driver.kick(5);
    rig.driver.serve_source(1);
    assert_eq!((rig.transmitted(1).len(), rig.output(1)), (1, vec![]));
    rig.driver.write(DATA, b"new");
    rig.print(1, DATA, 3);
    assert_eq!(rig.output(1), b"new");
}

#[test]
fn input_comes_only_to_a_guest_that_has_the_port_open() {
    let mut rig = Rig::up(32);
    rig.ready();
    let room = rig.driver.add(4, &[(DATA, 16, true)]);
    rig.driver.kick(4);
    assert_eq!(rig.ports[1].receive(b"early"), 0);
    assert_eq!(rig.changes(1), 0);
    rig.say(1, PORT_OPEN, 1);
    assert_eq!(rig.changes(1), 1);
    assert_eq!(rig.ports[1].receive(b"input"), 5);
    rig.driver.serve_source(1);
    assert_eq!(rig.received(1), [(room, 5)]);
    assert_eq!(rig.driver.read(DATA, 6), [b"input".as_slice(), &[CANARY]].concat());
    // What is not taken when it closes is not for whoever opens it next.
    assert_eq!(rig.ports[1].receive(b"late"), 4);
    rig.driver.serve_source(1);
    rig.say(1, PORT_OPEN, 0);
    assert_eq!(rig.ports[1].receive(b"later"), 0);
    rig.say(1, PORT_OPEN, 1);
    rig.driver.add(4, &[(DATA, 16, true)]);
    rig.driver.kick(4);
    assert_eq!(rig.received(1), []);
}

#[test]
fn input_beyond_the_limit_stays_with_the_host_until_the_guest_has_read() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.say(0, PORT_OPEN, 1);
    rig.changes(0);
    let input: Vec<u8> = (0..INPUT_LIMIT as u32 + 100).map(|it| (it % 241) as u8).collect();
    assert_eq!(rig.ports[0].receive(&input), INPUT_LIMIT);
    assert_eq!(rig.ports[0].receive(&input[INPUT_LIMIT..]), 0);
    rig.driver.serve_source(0);
    assert_eq!(rig.changes(0), 0);
    // Pieces, empty ones and one that is only for reading among them.
    rig.driver.add(0, &[(DATA, 1000, true), (DATA + 1000, 0, true), (DATA + 1000, 4000, true)]);
    rig.driver.add(0, &[(DATA, 10, false)]);
    rig.driver.add(0, &[(DATA + 5000, 0x8000, true)]);
    rig.driver.kick(0);
    let lengths: Vec<_> = rig.received(0).into_iter().map(|(_, len)| len as usize).collect();
    assert_eq!(lengths, [5000, 0, INPUT_LIMIT - 5000]);
    assert!(rig.driver.read(DATA, INPUT_LIMIT) == input[..INPUT_LIMIT]);
    assert_eq!(rig.driver.read(DATA + INPUT_LIMIT as u64, 1), [CANARY]);
    assert_eq!(rig.changes(0), 1);
    assert_eq!(rig.ports[0].receive(&input[INPUT_LIMIT..]), 100);
}

#[test]
fn a_host_that_waits_for_the_last_of_its_input_to_be_read_is_told() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.say(1, PORT_OPEN, 1);
    rig.changes(1);
    rig.ports[1].receive(b"bye");
    assert!(!rig.ports[1].is_drained());
    rig.driver.serve_source(1);
    rig.driver.add(4, &[(DATA, 16, true)]);
    rig.driver.kick(4);
    assert_eq!((rig.changes(1), rig.ports[1].is_drained()), (1, true));
}

#[test]
fn a_reset_keeps_what_was_taken_and_takes_no_more() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.say(0, PORT_OPEN, 1);
    rig.driver.write(DATA, &[b'x'; 100_000]);
    rig.print(0, DATA, 50_000);
    rig.print(0, DATA, 50_000);
    rig.ports[0].receive(b"typed");
    rig.driver.set(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert!(!rig.ports[0].is_open());
    let used = rig.driver.used_index(1);
    rig.driver.interrupts();
    assert_eq!(rig.output(0), [b'x'; OUTPUT_LIMIT]);
    rig.driver.serve_source(0);
    rig.driver.kick(1);
    assert_eq!((rig.output(0), rig.driver.used_index(1), rig.driver.interrupts()), (vec![], used, 0));
    // And the next driver starts from the beginning.
    rig.start(MULTIPORT, 32);
    rig.ready();
    rig.driver.write(DATA, b"new");
    rig.print(0, DATA, 3);
    assert_eq!(rig.output(0), b"new");
    rig.say(0, PORT_OPEN, 1);
    rig.driver.add(0, &[(DATA, 16, true)]);
    rig.driver.kick(0);
    assert_eq!(rig.received(0), []);
}

#[test]
fn a_thousand_resets_leave_nothing_behind() {
    alone("virtio::console::tests::data::a_thousand_resets_leave_nothing_behind", || {
        let mut rig = Rig::new();
        let mut cycle = || {
            rig.start(SIZE | MULTIPORT, 32);
            rig.ready();
            rig.say(0, PORT_OPEN, 1);
            rig.ports[0].receive(b"typed");
            rig.print(0, DATA, 70_000);
            assert_eq!(rig.output(0).len(), OUTPUT_LIMIT);
        };
        (0..10).for_each(|_| cycle());
        let before = (files_and_threads(), heap::live());
        (0..1000).for_each(|_| cycle());
        let after = (files_and_threads(), heap::live());
        assert_eq!(before.0, after.0);
        assert!(after.1 - before.1 < 1 << 16, "{} bytes", after.1 - before.1);
    });
}

#[test]
fn the_driver_stays_up_whatever_the_ports_are_used_for() {
    let mut rig = Rig::up(32);
    rig.ready();
    for queue in [0, 1, 4, 5, 6, 7, 8, 9] {
        for part in [(DATA, 64, true), (DATA, 64, false), (DATA, 0, true), (DATA, 0, false)] {
            rig.driver.add(queue, &[part]);
        }
        rig.driver.kick(queue);
    }
    for source in 0..4 {
        rig.driver.serve_source(source);
    }
    assert_eq!(rig.driver.status(), UP);
}
