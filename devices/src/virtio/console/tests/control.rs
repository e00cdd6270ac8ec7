//! Ports come, open, close, change their size; and drivers that talk nonsense.

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::super::super::testing::{UP, heap};
use super::*;

#[test]
fn a_driver_learns_of_every_port_in_the_order_of_the_protocol() {
    let mut rig = Rig::up(32);
    assert_eq!(rig.messages(), []);
    rig.say(0, DEVICE_READY, 1);
    let ports: Vec<_> = (0..4).map(|id| (id, PORT_ADD, 1, vec![])).collect();
    assert_eq!(rig.messages(), ports);
    rig.say(0, PORT_READY, 1);
    let console = [(0, CONSOLE_PORT, 1, vec![]), (0, RESIZE, 0, vec![0; 4]), (0, PORT_OPEN, 1, vec![])];
    assert_eq!(rig.messages(), console);
    rig.say(2, PORT_READY, 1);
    assert_eq!(rig.messages(), [(2, PORT_NAME, 1, b"b".to_vec())]);
    assert_eq!(rig.driver.config(4, 4), 4u32.to_le_bytes());
}

#[test]
fn a_device_without_a_console_has_only_named_ports() {
    let calls = Arc::<HostCalls>::default();
    let port = Arc::new(Port::new("a", Box::new(Listener(calls))).unwrap());
    let driver = Driver::new(|_| Box::new(Console::new(None, vec![port.clone()])));
    let mut rig = Rig { driver, ports: vec![port], calls: vec![], room: vec![] };
    rig.start(MULTIPORT, 8);
    rig.say(0, DEVICE_READY, 1);
    rig.say(0, PORT_READY, 1);
    rig.say(1, PORT_READY, 1);
    assert_eq!(rig.messages(), [(1, PORT_ADD, 1, vec![]), (1, PORT_NAME, 1, b"a".to_vec())]);
    rig.ports[0].connect(true);
    rig.driver.serve_source(0);
    assert_eq!(rig.messages(), [(1, PORT_OPEN, 1, vec![])]);
    // What is written to the console that is not there goes nowhere.
    let head = rig.print(0, DATA, 10);
    assert_eq!(rig.transmitted(0), [(head, 0)]);
}

#[test]
fn a_host_that_comes_and_goes_is_told_of_even_if_it_is_quick() {
    let mut rig = Rig::up(32);
    rig.ready();
    let (opened, closed) = ([(1, PORT_OPEN, 1, vec![])], [(1, PORT_OPEN, 0, vec![])]);
    let change = |rig: &mut Rig, steps: &[bool]| {
        steps.iter().for_each(|connected| rig.ports[1].connect(*connected));
        rig.driver.serve_source(1);
        rig.messages()
    };
    assert_eq!(change(&mut rig, &[true]), opened);
    assert_eq!(change(&mut rig, &[false, true]), [closed.clone(), opened].concat());
    assert_eq!(change(&mut rig, &[false]), closed);
    // There was nothing to report.
    assert_eq!(change(&mut rig, &[true, false]), []);
}

#[test]
fn messages_wait_for_room_and_do_not_pile_up() {
    let mut rig = Rig::up(0);
    rig.say(0, DEVICE_READY, 1);
    rig.say(1, PORT_READY, 1);
    let ((), peak) = heap::peak(|| {
        for round in 0..1000 {
            rig.ports[1].connect(round % 2 == 0);
            rig.driver.serve_source(1);
            rig.say(0, DEVICE_READY, 1);
            rig.say(1, PORT_READY, 1);
        }
    });
    assert!(peak < 1 << 16, "{peak} bytes");
    rig.ports[1].connect(true);
    rig.driver.serve_source(1);
    rig.make_room(32, ROOM_LEN as u32);
    let messages = rig.messages();
    assert!(messages.len() <= 7, "{messages:?}");
    assert_eq!(messages.last(), Some(&(3, PORT_ADD, 1, vec![])));
    let of_port: Vec<_> = messages.iter().filter(|it| it.0 == 1).map(|it| (it.1, it.2)).collect();
    assert_eq!(of_port.first(), Some(&(PORT_ADD, 1)));
    assert_eq!(of_port.last(), Some(&(PORT_OPEN, 1)));
}

#[test]
fn a_message_that_does_not_fit_waits_for_a_buffer_that_it_fits_into() {
    let mut rig = Rig::up(0);
    rig.make_room(3, 7);
    rig.say(0, DEVICE_READY, 1);
    assert_eq!(rig.driver.used(CONTROL_RECEIVE).iter().filter(|(_, len)| *len == 0).count(), 3);
    rig.make_room(4, 8);
    assert_eq!(rig.messages().len(), 4);
}

#[test]
fn a_new_size_reaches_the_configuration_and_the_driver() {
    let mut rig = Rig::new();
    rig.ports[0].resize(132, 43);
    rig.start(SIZE | MULTIPORT, 32);
    assert_eq!(rig.driver.config(0, 4), [132, 0, 43, 0]);
    rig.ready();
    rig.driver.interrupts();
    rig.ports[0].resize(80, 25);
    rig.driver.serve_source(0);
    assert_eq!(rig.driver.config(0, 4), [80, 0, 25, 0]);
    // Linux has rows first.
    assert_eq!(rig.messages(), [(0, RESIZE, 0, vec![25, 0, 80, 0])]);
    assert!(rig.driver.interrupts() > 0);
    rig.ports[0].resize(80, 25);
    rig.driver.serve_source(0);
    assert_eq!(rig.messages(), []);
}

#[test]
fn nonsense_on_the_control_queue_is_ignored() {
    let mut rig = Rig::up(64);
    rig.ready();
    for id in [4, 5, 30, 31, 0x8000, 0xffff_ffff] {
        for event in 0..10 {
            rig.say(id, event, 1);
        }
    }
    // All ports are reported again, whatever id comes with that.
    assert!(rig.messages().iter().all(|it| it.1 == PORT_ADD));
    for event in [PORT_ADD, 2, CONSOLE_PORT, RESIZE, PORT_NAME, 8, 0xffff] {
        for value in [0, 1, 0xffff] {
            rig.say(1, event, value);
        }
    }
    for (event, value) in [(DEVICE_READY, 0), (DEVICE_READY, 2), (PORT_OPEN, 7), (PORT_READY, 0)] {
        rig.say(1, event, value);
    }
    assert_eq!(rig.messages(), []);
    assert!(!rig.ports[1].is_open());
    // Short, empty, for writing, and with a megabyte behind it.
    rig.driver.write(CONTROL, &Message { id: 0, event: DEVICE_READY, value: 1 }.encode());
    for part in [(CONTROL, 7, false), (CONTROL, 0, false), (CONTROL, 8, true)] {
        rig.driver.add(CONTROL_TRANSMIT, &[part]);
    }
    rig.driver.kick(CONTROL_TRANSMIT);
    assert_eq!((rig.driver.used(CONTROL_TRANSMIT).len(), rig.messages()), (3, vec![]));
    rig.driver.add(CONTROL_TRANSMIT, &[(CONTROL, 8, false), (BUFFERS, 1 << 20, false)]);
    rig.driver.kick(CONTROL_TRANSMIT);
    assert_eq!((rig.driver.used(CONTROL_TRANSMIT).len(), rig.messages().len()), (1, 4));
    assert_eq!(rig.driver.status(), UP);
}

#[test]
fn a_driver_without_ports_has_the_console() {
    let mut rig = Rig::new();
    rig.driver.start(0);
    assert!(rig.ports[0].is_open());
    assert_eq!(rig.ports[0].receive(b"in"), 2);
    let head = rig.driver.add(0, &[(DATA, 16, true)]);
    rig.driver.kick(0);
    assert_eq!(rig.received(0), [(head, 2)]);
    rig.driver.write(DATA, b"out");
    rig.print(0, DATA, 3);
    assert_eq!(rig.output(0), b"out");
    // The other queues do nothing.
    rig.driver.write(CONTROL, &Message { id: 1, event: PORT_OPEN, value: 1 }.encode());
    for queue in 2..10 {
        rig.driver.add(queue, &[(CONTROL, 8, false)]);
        rig.driver.kick(queue);
        assert_eq!(rig.driver.used(queue), []);
    }
    assert!(!rig.ports[1].is_open());
}

#[test]
fn an_emergency_write_needs_no_queue() {
    let mut rig = Rig::new();
    rig.driver.negotiate(0);
    let write = |rig: &mut Rig, offset: u64, bytes: &[u8]| {
        rig.driver.window().write(u64::from(VIRTIO_MMIO_CONFIG) + offset, bytes);
    };
    write(&mut rig, EMERGENCY, b"-\0\0\0");
    write(&mut rig, EMERGENCY, b"!");
    // Anywhere else, and nothing at all.
    for (offset, len) in [(0, 8), (4, 4), (7, 4), (8, 0), (9, 1), (u64::MAX - 0x200, 8)] {
        write(&mut rig, offset, &[b'x'; 8][..len]);
    }
    assert_eq!(rig.output(0), b"-!");
    for _ in 0..OUTPUT_LIMIT + 5 {
        write(&mut rig, EMERGENCY, b"y");
    }
    assert_eq!((rig.output(0).len(), rig.ports[0].lost()), (OUTPUT_LIMIT, 5));
}
