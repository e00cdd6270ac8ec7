//! A console that is saved, and loaded with other ends at the host's side.

use super::*;

impl Rig {
    /// Goes on with a device that has new ends, of which those of `open` are open.
    fn reload(&mut self, open: &[usize]) {
        let (ports, calls) = ports();
        open.iter().for_each(|id| ports[*id].connect(true));
        self.driver.reload(|_| Box::new(console(&ports))).unwrap();
        (self.ports, self.calls) = (ports, calls);
        (0..4).for_each(|id| self.driver.serve_source(id));
    }
}

#[test]
fn input_that_the_guest_has_not_taken_comes_from_the_loaded_device() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.say(0, PORT_OPEN, 1);
    assert_eq!(rig.ports[0].receive(b"hello"), 5);
    rig.driver.serve_source(0);
    rig.reload(&[0]);
    assert!(rig.ports[0].is_open());
    let head = rig.driver.add(queues_of(0)[0], &[(DATA, 100, true)]);
    rig.driver.kick(queues_of(0)[0]);
    assert_eq!(rig.received(0), [(head, 5)]);
    assert_eq!(rig.driver.read(DATA, 5), b"hello");
}

#[test]
fn output_that_was_taken_in_part_goes_on_with_the_next_byte() {
    let mut rig = Rig::up(32);
    rig.ready();
    let expected: Vec<u8> = (0..100_000u32).map(|it| (it % 251) as u8).collect();
    rig.driver.write(DATA, &expected);
    let head = rig.print(0, DATA, 100_000);
    let mut output = rig.output(0);
    assert_eq!((output.len(), rig.transmitted(0)), (OUTPUT_LIMIT, vec![]));
    rig.reload(&[0]);
    output.extend(rig.output(0));
    assert!(output == expected);
    assert_eq!(rig.transmitted(0), [(head, 0)]);
}

#[test]
fn the_driver_hears_which_ends_are_open_at_the_new_host() {
    let mut rig = Rig::up(32);
    rig.ready();
    rig.ports[1].connect(true);
    (0..4).for_each(|id| rig.driver.serve_source(id));
    assert_eq!(rig.messages(), [(1, PORT_OPEN, 1, vec![])]);
    rig.reload(&[0, 2]);
    assert_eq!(rig.messages(), [(1, PORT_OPEN, 0, vec![]), (2, PORT_OPEN, 1, vec![])]);
    rig.reload(&[0, 2]);
    assert_eq!(rig.messages(), []);
}

#[test]
fn messages_that_had_no_room_are_sent_by_the_loaded_device() {
    let mut rig = Rig::up(0);
    rig.say(0, DEVICE_READY, 1);
    rig.reload(&[0]);
    rig.make_room(8, ROOM_LEN as u32);
    let added: Vec<_> = (0..4).map(|id| (id, PORT_ADD, 1, vec![])).collect();
    assert_eq!(rig.messages(), added);
}

#[test]
fn a_terminal_of_another_size_is_told() {
    let mut rig = Rig::up(32);
    rig.ports[0].resize(80, 25);
    rig.driver.serve_source(0);
    rig.ready();
    rig.reload(&[0]);
    assert_eq!(rig.driver.config(0, 4), [0; 4], "the new host has not said a size");
    assert_eq!(rig.messages(), [(0, RESIZE, 0, vec![0; 4])]);
}
