//! Commands that lie about sizes, places and names: each gets the specification's error, and costs no more than its size.

use super::super::super::testing::{CANARY, NEEDS_RESET, heap, watched};
use super::*;

const TOP: u32 = u32::MAX;

fn refused(desk: &mut Desk, command: u32, body: &[u32], refusal: Refusal) {
    let (kind, peak) = heap::peak(|| desk.ask(command, body));
    assert_eq!(kind, refusal as u32, "{command:#x} {body:?}");
    assert!(peak < 1 << 20, "{command:#x} {body:?}: {peak} bytes");
}

/// The device works, touched nothing but answers, and holds as much memory as when it was new.
fn assert_contract(mut desk: Desk) {
    assert_eq!(desk.driver.status() & NEEDS_RESET, 0);
    desk.driver.assert_contract(|driver| super::super::super::testing::queue_serves(driver, CONTROL));
}

#[test]
fn resources_of_impossible_sizes_are_refused_before_any_memory_is_taken() {
    let mut desk = Desk::new();
    let sides = [0, TOP, 1 << 31, 1 << 16, 16385];
    let sizes = sides.iter().flat_map(|side| [[*side, 1], [1, *side], [*side, *side]]);
    for [width, height] in sizes.chain([[0, 0], [0x1_0001, 0xffff]]) {
        let body = [1, XRGB, width, height];
        refused(&mut desk, command::RESOURCE_CREATE_2D, &body, Refusal::InvalidParameter);
    }
    // A gigabyte.
    refused(&mut desk, command::RESOURCE_CREATE_2D, &[1, XRGB, 16384, 16384], Refusal::OutOfMemory);
    for format in [0, 5, 66, TOP] {
        refused(&mut desk, command::RESOURCE_CREATE_2D, &[1, format, 1, 1], Refusal::InvalidParameter);
    }
    assert_contract(desk);
}

#[test]
fn all_resources_together_have_a_limit_and_give_their_memory_back() {
    watched("resources", || {
        let mut desk = Desk::within(4 << 10);
        let create = |desk: &mut Desk, id| desk.ask(command::RESOURCE_CREATE_2D, &[id, XRGB, 32, 32]);
        let before = heap::live();
        for _ in 0..2 {
            assert!((1..=4).all(|id| create(&mut desk, id) == response::OK_NODATA));
            refused(&mut desk, command::RESOURCE_CREATE_2D, &[5, XRGB, 1, 1], Refusal::OutOfMemory);
            (1..=4).for_each(|id| desk.done(command::RESOURCE_UNREF, &[id, 0]));
        }
        assert!(heap::live() - before < 4 << 10);
        (1..=1024).for_each(|id| desk.done(command::RESOURCE_CREATE_2D, &[id, XRGB, 1, 1]));
        refused(&mut desk, command::RESOURCE_CREATE_2D, &[1025, XRGB, 1, 1], Refusal::OutOfMemory);
        assert_contract(desk);
    });
}

#[test]
fn names_that_are_no_resource_or_one_already_are_refused() {
    let mut desk = Desk::new();
    desk.resource(9, 20, 16);
    refused(&mut desk, command::RESOURCE_CREATE_2D, &[0, XRGB, 1, 1], Refusal::InvalidResource);
    refused(&mut desk, command::RESOURCE_CREATE_2D, &[9, XRGB, 1, 1], Refusal::InvalidResource);
    for id in [0, 8, TOP] {
        refused(&mut desk, command::RESOURCE_UNREF, &[id, 0], Refusal::InvalidResource);
        refused(&mut desk, command::RESOURCE_DETACH_BACKING, &[id, 0], Refusal::InvalidResource);
        let entry = [id, 1, PICTURE as u32, 0, 4, 0];
        refused(&mut desk, command::RESOURCE_ATTACH_BACKING, &entry, Refusal::InvalidResource);
        refused(
            &mut desk,
            command::TRANSFER_TO_HOST_2D,
            &[0, 0, 1, 1, 0, 0, id, 0],
            Refusal::InvalidResource,
        );
        refused(&mut desk, command::RESOURCE_FLUSH, &[0, 0, 1, 1, id, 0], Refusal::InvalidResource);
    }
    refused(&mut desk, command::SET_SCANOUT, &[0, 0, 1, 1, 0, TOP], Refusal::InvalidResource);
    for scanout in [1, 15, 16, TOP] {
        refused(&mut desk, command::SET_SCANOUT, &[0, 0, 1, 1, scanout, 9], Refusal::InvalidScanout);
        refused(&mut desk, command::GET_EDID, &[scanout, 0], Refusal::InvalidScanout);
    }
    assert_contract(desk);
}

#[test]
fn backing_that_is_not_all_ram_or_has_no_sane_number_of_pieces_is_refused() {
    let mut desk = Desk::new();
    desk.done(command::RESOURCE_CREATE_2D, &[1, XRGB, 20, 16]);
    let mut attach = |count, entry: [u32; 4], refusal| {
        let body = [&[1, count][..], &entry].concat();
        refused(&mut desk, command::RESOURCE_ATTACH_BACKING, &body, refusal);
    };
    for count in [0, 2, 16384, 16385, 1 << 28, TOP] {
        attach(count, [PICTURE as u32, 0, 4, 0], Refusal::InvalidParameter);
    }
    // Past the last byte, in the hole, into it, at the end of all addresses.
    for [low, high, len] in [
        [0x30_0000, 0, 1],
        [0x2f_ffff, 0, 2],
        [0x18_0000, 0, 8],
        [0xf_ffff, 0, 2],
        [TOP, TOP, TOP],
        [0, 1, 1],
    ] {
        attach(1, [low, high, len, 0], Refusal::InvalidParameter);
    }
    desk.resource(2, 20, 16);
    let again = [2, 1, PICTURE as u32, 0, 4, 0];
    refused(&mut desk, command::RESOURCE_ATTACH_BACKING, &again, Refusal::Unspecified);
    desk.done(command::RESOURCE_DETACH_BACKING, &[2, 0]);
    desk.done(command::RESOURCE_ATTACH_BACKING, &again);
    assert_contract(desk);
}

#[test]
fn pieces_of_all_resources_together_have_a_limit() {
    watched("pieces", || {
        let mut desk = Desk::new();
        let entries = [PICTURE as u32, 0, 0, 0].repeat(16384);
        for id in 1..=5 {
            desk.done(command::RESOURCE_CREATE_2D, &[id, XRGB, 1, 1]);
            let kind = desk.ask(command::RESOURCE_ATTACH_BACKING, &[&[id, 16384], &entries[..]].concat());
            let refused = Refusal::OutOfMemory as u32;
            assert_eq!(kind, if id < 5 { response::OK_NODATA } else { refused });
        }
        desk.done(command::RESOURCE_UNREF, &[1, 0]);
        desk.done(command::RESOURCE_DETACH_BACKING, &[2, 0]);
        for id in [2, 5] {
            desk.done(command::RESOURCE_ATTACH_BACKING, &[&[id, 16384], &entries[..]].concat());
        }
        assert_contract(desk);
    });
}

#[test]
fn rectangles_and_offsets_past_the_end_are_refused() {
    let mut desk = Desk::new();
    desk.resource(1, 20, 16);
    let beyond = [
        [0, 0, 21, 1],
        [0, 0, 1, 17],
        [20, 0, 1, 1],
        [0, 16, 1, 1],
        [1, 0, TOP, 1],
        [TOP, TOP, 1, 1],
        [TOP, 0, 2, 1],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
        [TOP, TOP, TOP, TOP],
    ];
    for rect in beyond {
        let invalid = Refusal::InvalidParameter;
        refused(&mut desk, command::TRANSFER_TO_HOST_2D, &[&rect[..], &[0, 0, 1, 0]].concat(), invalid);
        refused(&mut desk, command::RESOURCE_FLUSH, &[&rect[..], &[1, 0]].concat(), invalid);
        refused(&mut desk, command::SET_SCANOUT, &[&rect[..], &[0, 1]].concat(), invalid);
    }
    let all = 4 * 20 * 16;
    for (rect, low, high) in [
        ([0, 0, 20, 16], 1, 0),
        ([0, 0, 1, 1], all - 3, 0),
        ([0, 0, 1, 2], all - 4, 0),
        ([0, 0, 1, 1], TOP, TOP),
        ([0, 0, 20, 16], TOP - all + 1, TOP),
        ([0, 0, 1, 1], 0, 1 << 31),
    ] {
        let body = [&rect[..], &[low, high, 1, 0]].concat();
        refused(&mut desk, command::TRANSFER_TO_HOST_2D, &body, Refusal::InvalidParameter);
    }
    desk.done(command::TRANSFER_TO_HOST_2D, &[19, 15, 1, 1, all - 4, 0, 1, 0]);
    desk.done(command::RESOURCE_DETACH_BACKING, &[1, 0]);
    refused(&mut desk, command::TRANSFER_TO_HOST_2D, &[0, 0, 1, 1, 0, 0, 1, 0], Refusal::Unspecified);
    assert_contract(desk);
}

#[test]
fn a_scanout_longer_than_a_screen_can_be_is_refused() {
    let mut desk = Desk::new();
    desk.done(command::RESOURCE_CREATE_2D, &[1, XRGB, 16384, 1]);
    refused(&mut desk, command::SET_SCANOUT, &[0, 0, 4096, 1, 0, 1], Refusal::InvalidParameter);
    desk.done(command::SET_SCANOUT, &[9000, 0, 4095, 1, 0, 1]);
    assert_contract(desk);
}

#[test]
fn memory_behind_a_resource_may_be_the_rings_and_is_only_read() {
    let mut desk = Desk::new();
    desk.done(command::RESOURCE_CREATE_2D, &[1, XRGB, 64, 64]);
    // The same page many times, rings, the command itself and its answer.
    let pages = [0x1000, 0x1000, 0x2000, 0x3000, COMMAND as u32, ANSWER as u32, 0x1000, 0x1000];
    let entries: Vec<u32> = pages.iter().flat_map(|page| [*page, 0, 2048, 0]).collect();
    desk.done(command::RESOURCE_ATTACH_BACKING, &[&[1, 8], &entries[..]].concat());
    desk.done(command::TRANSFER_TO_HOST_2D, &[0, 0, 64, 64, 0, 0, 1, 0]);
    desk.driver.assert_intact();
    assert_contract(desk);
}

#[test]
fn what_is_shown_and_unreferenced_goes_black_and_its_name_is_free() {
    let mut desk = Desk::new();
    desk.resource(1, 20, 16);
    desk.draw(1, 20, 16, 1);
    desk.done(command::SET_SCANOUT, &[0, 0, 20, 16, 0, 1]);
    let before = desk.viewer.look();
    desk.done(command::RESOURCE_UNREF, &[1, 0]);
    let look = desk.viewer.look();
    assert_eq!((look.replaced, look.surface.size()), (true, before.surface.size()));
    assert_eq!(desk.row(0, 20), [0; 20]);
    // A viewer that looked before reads on, and what the guest does now does not reach it.
    desk.resource(1, 20, 16);
    desk.draw(1, 20, 16, 7000);
    let mut row = [0; 2];
    before.surface.read(0, 0, &mut row);
    assert_eq!(row, [1, 2]);
    desk.done(command::RESOURCE_FLUSH, &[0, 0, 20, 16, 1, 0]);
    assert_eq!(desk.viewer.look().rows, []);
    desk.done(command::SET_SCANOUT, &[0, 0, 0, 0, 0, 0]);
    assert_contract(desk);
}

#[test]
fn cursors_at_the_end_of_all_numbers_point_within_themselves() {
    let mut desk = Desk::new();
    desk.resource(5, 64, 64);
    desk.resource(6, 63, 64);
    let update = |id, at: u32| [command::UPDATE_CURSOR, 0, 0, 0, 0, 0, at, at, at, 0, id, at, at, 0];
    for at in [1 << 31, TOP] {
        desk.cursor(&update(5, at));
        let cursor = desk.viewer.look().cursor.flatten().unwrap();
        assert_eq!((cursor.hot_x, cursor.hot_y), (63, 63));
        for id in [6, 7, TOP] {
            desk.cursor(&update(id, at));
            assert!(matches!(desk.viewer.look().cursor, Some(None)), "resource {id}");
            desk.cursor(&update(5, at));
            desk.viewer.look();
        }
        desk.cursor(&update(0, at));
        desk.viewer.look();
    }
    for len in 0..14 {
        desk.cursor(&update(0, 0)[..len]);
        assert!(desk.viewer.look().cursor.is_none(), "{len} words");
    }
    assert_contract(desk);
}

#[test]
fn commands_cut_anywhere_get_an_error_and_answers_fill_what_room_there_is() {
    let mut desk = Desk::new();
    desk.resource(1, 20, 16);
    let [create, transfer] = [&[2, XRGB, 1, 1][..], &[0, 0, 1, 1, 0, 0, 1, 0]];
    let [attach, edid] = [&[1, 1, PICTURE as u32, 0, 4, 0][..], &[0, 0]];
    let commands = [
        (command::RESOURCE_CREATE_2D, create),
        (command::TRANSFER_TO_HOST_2D, transfer),
        (command::RESOURCE_ATTACH_BACKING, attach),
        (command::GET_EDID, edid),
    ];
    for (command, body) in commands {
        let words = [&[command, 0, 0, 0, 0, 0], body].concat();
        for len in 0..4 * words.len() as u32 {
            desk.driver.write(COMMAND, &bytes(&words));
            let parts = [(COMMAND, len, false), (ANSWER, 24, true)];
            desk.driver.add(CONTROL, &parts[usize::from(len == 0)..]);
            desk.driver.kick(CONTROL);
            assert_eq!(desk.driver.used(CONTROL)[0].1, 24);
            let kind = desk.driver.read(ANSWER, 4);
            assert!(kind[0] <= 5 && kind[1] == 0x12, "{command:#x} of {len} bytes: {kind:?}");
        }
    }
    for room in [0, 1, 23, 24, 25, 407] {
        desk.driver.write(COMMAND, &bytes(&[command::GET_DISPLAY_INFO, 0, 0, 0, 0, 0]));
        let parts = [(COMMAND, 24, false), (ANSWER, room, true)];
        desk.driver.add(CONTROL, &parts[..1 + usize::from(room > 0)]);
        desk.driver.kick(CONTROL);
        assert_eq!(desk.driver.used(CONTROL)[0].1, room);
    }
    assert_eq!(desk.driver.read(ANSWER + u64::from(ROOM), 1), [CANARY]);
    assert_contract(desk);
}

#[test]
fn commands_of_three_dimensions_and_of_nothing_are_refused() {
    let mut desk = Desk::new();
    for command in
        [0, 0xff, 0x108, 0x109, 0x10b, 0x10c, 0x10d, 0x10e, 0x200, 0x207, 0x300, 0x301, 0x1100, TOP]
    {
        refused(&mut desk, command, &[0; 16], Refusal::Unspecified);
    }
    assert_contract(desk);
}
