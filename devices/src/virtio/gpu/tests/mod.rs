//! A driver that draws, and what a viewer sees of it.

mod hostile;
mod state;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_STATUS,
};

use super::super::testing::{BUFFERS, Driver};
use super::*;
use crate::screen::Viewer;

/// Where the guest has its commands, the answers, and what it draws.
const COMMAND: u64 = BUFFERS;
const ANSWER: u64 = BUFFERS + 0x4_8000;
const PICTURE: u64 = BUFFERS + 0x5_0000;
const ROOM: u32 = 2048;
const CURSORS: usize = 1;
/// VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM.
const XRGB: u32 = 2;
const SIZE: Size = Size { width: 640, height: 480 };

/// A graphics card that is up, and one that looks.
struct Desk {
    driver: Driver,
    screen: Arc<Screen>,
    viewer: Viewer,
}

impl Desk {
    fn new() -> Self {
        Self::within(MOST_PIXELS)
    }

    /// A card whose resources have so many pixels at most.
    fn within(pixels: usize) -> Self {
        let screen = Arc::new(Screen::new(SIZE).unwrap());
        let mut viewer = screen.attach().unwrap();
        viewer.look();
        let resources = Resources::new(pixels);
        let gpu = Gpu { resources, ..Gpu::new(screen.clone()) };
        let mut driver = Driver::new(|_| Box::new(gpu));
        driver.start(EDID);
        Self { driver, screen, viewer }
    }

    /// Sends raw words on the control queue; returns the answer's.
    fn send(&mut self, words: &[u32]) -> Vec<u32> {
        self.driver.write(COMMAND, &bytes(words));
        let len = 4 * words.len() as u32;
        let head = self.driver.add(CONTROL, &[(COMMAND, len, false), (ANSWER, ROOM, true)]);
        self.driver.kick(CONTROL);
        let used = self.driver.used(CONTROL);
        assert!(matches!(used[..], [(it, len)] if it == head && (24..=ROOM).contains(&len)), "{used:?}");
        let answer = self.driver.read(ANSWER, used[0].1 as usize);
        answer.chunks(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect()
    }

    /// Sends a command; returns the kind of its answer.
    fn ask(&mut self, command: u32, body: &[u32]) -> u32 {
        self.send(&[&[command, 0, 0, 0, 0, 0], body].concat())[0]
    }

    fn done(&mut self, command: u32, body: &[u32]) {
        assert_eq!(self.ask(command, body), response::OK_NODATA, "{command:#x} {body:?}");
    }

    /// A resource with memory behind it in two pieces.
    fn resource(&mut self, id: u32, width: u32, height: u32) {
        self.done(command::RESOURCE_CREATE_2D, &[id, XRGB, width, height]);
        let (first, rest) = (1000, 4 * width * height - 1000);
        let picture = PICTURE as u32;
        let entries = [picture, 0, first, 0, picture + first, 0, rest, 0];
        self.done(command::RESOURCE_ATTACH_BACKING, &[&[id, 2], &entries[..]].concat());
    }

    /// Draws with numbers, each pixel its own beside `from`, and transfers all of a resource.
    fn draw(&mut self, id: u32, width: u32, height: u32, from: u32) {
        let pixels: Vec<u32> = (from..from + width * height).collect();
        self.driver.write(PICTURE, &bytes(&pixels));
        self.done(command::TRANSFER_TO_HOST_2D, &[0, 0, width, height, 0, 0, id, 0]);
    }

    /// Sends words on the cursor's queue.
    fn cursor(&mut self, words: &[u32]) {
        self.driver.write(COMMAND, &bytes(words));
        let head = self.driver.add(CURSORS, &[(COMMAND, 4 * words.len() as u32, false)]);
        self.driver.kick(CURSORS);
        assert_eq!(self.driver.used(CURSORS), [(head, 0)]);
    }

    fn row(&mut self, y: u32, len: usize) -> Vec<u32> {
        let mut row = vec![0; len];
        self.viewer.look().surface.read(0, y, &mut row);
        row
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|it| it.to_le_bytes()).collect()
}

#[test]
fn display_information_is_the_size_wished() {
    let mut desk = Desk::new();
    let answer = desk.send(&[command::GET_DISPLAY_INFO, 0, 0, 0, 0, 0]);
    assert_eq!(answer.len(), 6 + 16 * 6);
    assert_eq!(answer[0], response::OK_DISPLAY_INFO);
    assert_eq!(answer[6..12], [0, 0, 640, 480, 1, 0]);
    assert!(answer[12..].iter().all(|it| *it == 0));
    let answer = desk.send(&[command::GET_EDID, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((answer[0], answer[6], answer.len()), (response::OK_EDID, 128, 6 + 2 + 256));
    assert_eq!(bytes(&answer[8..40]), edid::of(SIZE));
}

#[test]
fn what_the_guest_draws_is_seen_when_it_is_flushed() {
    let mut desk = Desk::new();
    desk.resource(7, 20, 16);
    desk.draw(7, 20, 16, 0);
    desk.done(command::SET_SCANOUT, &[0, 0, 20, 16, 0, 7]);
    let look = desk.viewer.look();
    assert_eq!(
        (look.replaced, look.silent, look.surface.size()),
        (true, false, Size { width: 20, height: 16 })
    );
    assert_eq!(desk.row(1, 21)[18..], [38, 39, 0]);
    desk.draw(7, 20, 16, 1000);
    assert_eq!(desk.viewer.look().rows, []);
    desk.done(command::RESOURCE_FLUSH, &[3, 4, 5, 2, 7, 0]);
    assert_eq!(desk.viewer.look().rows, [4..6]);
    assert_eq!(desk.row(15, 20)[..2], [1300, 1301]);
}

#[test]
fn a_part_is_transferred_from_its_offset_and_the_rest_stays() {
    let mut desk = Desk::new();
    desk.resource(1, 20, 16);
    desk.draw(1, 20, 16, 0);
    desk.done(command::SET_SCANOUT, &[0, 0, 20, 16, 0, 1]);
    let pixels: Vec<u32> = (5000..5320).collect();
    desk.driver.write(PICTURE, &bytes(&pixels));
    // Not at a multiple of anything: the bytes of two pixels make up one.
    desk.done(command::TRANSFER_TO_HOST_2D, &[18, 14, 2, 2, 6, 0, 1, 0]);
    assert_eq!(desk.row(13, 20)[18..], [278, 279]);
    let mixed = |at: u32| (5001 + at) >> 16 | (5002 + at) << 16;
    assert_eq!(desk.row(14, 20)[17..], [297, mixed(0), mixed(1)]);
    assert_eq!(desk.row(15, 20)[17..], [317, mixed(20), mixed(21)]);
}

#[test]
fn a_scanout_shows_its_part_of_a_resource_and_nothing_beyond_is_flushed() {
    let mut desk = Desk::new();
    desk.resource(1, 20, 16);
    desk.draw(1, 20, 16, 0);
    desk.done(command::SET_SCANOUT, &[4, 8, 10, 4, 0, 1]);
    assert_eq!(desk.row(0, 11), (164..174).chain([0]).collect::<Vec<u32>>());
    desk.viewer.look();
    for (rect, rows) in [([0, 0, 20, 8], vec![]), ([0, 0, 20, 9], vec![0..1]), ([0, 11, 1, 5], vec![3..4])] {
        desk.done(command::RESOURCE_FLUSH, &[&rect[..], &[1, 0]].concat());
        assert_eq!(desk.viewer.look().rows, rows, "{rect:?}");
    }
}

#[test]
fn every_format_ends_up_as_the_same_colours() {
    let mut desk = Desk::new();
    for (format, memory) in [
        (1, [3, 2, 1, 9]),
        (2, [3, 2, 1, 9]),
        (3, [9, 1, 2, 3]),
        (4, [9, 1, 2, 3]),
        (67, [1, 2, 3, 9]),
        (134, [1, 2, 3, 9]),
        (68, [9, 3, 2, 1]),
        (121, [9, 3, 2, 1]),
    ] {
        desk.done(command::RESOURCE_CREATE_2D, &[format, format, 1, 1]);
        desk.driver.write(PICTURE, &memory);
        desk.done(command::RESOURCE_ATTACH_BACKING, &[format, 1, PICTURE as u32, 0, 4, 0]);
        desk.done(command::TRANSFER_TO_HOST_2D, &[0, 0, 1, 1, 0, 0, format, 0]);
        desk.done(command::SET_SCANOUT, &[0, 0, 1, 1, 0, format]);
        assert_eq!(desk.row(0, 1), [0x0901_0203], "format {format}");
    }
}

#[test]
fn a_fenced_command_is_answered_with_its_fence_and_another_without() {
    let mut desk = Desk::new();
    for command in [command::GET_DISPLAY_INFO, 0xffff] {
        assert_eq!(desk.send(&[command, 0xff, 11, 12, 13, 14])[1..6], [1, 11, 12, 13, 0]);
        assert_eq!(desk.send(&[command, 0xfe, 11, 12, 13, 14])[1..6], [0; 5]);
    }
}

#[test]
fn a_cursor_is_shown_as_it_looked_when_it_was_set() {
    let mut desk = Desk::new();
    desk.resource(5, 64, 64);
    desk.draw(5, 64, 64, 0);
    let update = |id, hot_x, hot_y| [command::UPDATE_CURSOR, 0, 0, 0, 0, 0, 0, 1, 2, 0, id, hot_x, hot_y, 0];
    desk.cursor(&update(5, 3, 4));
    let cursor = desk.viewer.look().cursor.flatten().unwrap();
    assert_eq!((cursor.hot_x, cursor.hot_y), (3, 4));
    assert_eq!(cursor.pixels, (0..4096).collect::<Vec<u32>>());
    desk.cursor(&[0x301, 0, 0, 0, 0, 0, 0, 500, 400, 0, 0, 0, 0, 0]);
    assert!(desk.viewer.look().cursor.is_none());
    desk.cursor(&update(0, 0, 0));
    assert!(matches!(desk.viewer.look().cursor, Some(None)));
}

#[test]
fn a_wished_size_is_an_event_until_the_driver_clears_it() {
    let mut desk = Desk::new();
    let wide = Size { width: 800, height: 600 };
    assert!(desk.screen.resize(wide));
    desk.driver.serve_sources();
    assert_eq!(
        desk.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG,
        VIRTIO_MMIO_INT_CONFIG
    );
    assert_eq!(desk.driver.config(0, 16), [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(desk.send(&[command::GET_DISPLAY_INFO, 0, 0, 0, 0, 0])[8..10], [800, 600]);
    let clear = u64::from(VIRTIO_MMIO_CONFIG) + EVENTS_CLEAR;
    desk.driver.window().write(clear, &[0; 4]);
    assert_eq!(desk.driver.config(0, 1), [1]);
    desk.driver.window().write(clear, &[1, 0, 0, 0]);
    assert_eq!(desk.driver.config(0, 8), [0; 8]);
}

#[test]
fn without_a_driver_the_screen_is_as_it_began() {
    let mut desk = Desk::new();
    let began = Arc::new(Surface::black(Size { width: 3, height: 3 }));
    desk.screen.begin(began.clone());
    desk.resource(1, 20, 16);
    desk.done(command::SET_SCANOUT, &[0, 0, 20, 16, 0, 1]);
    assert!(!Arc::ptr_eq(&desk.viewer.look().surface, &began));
    assert!(desk.driver.negotiate(1 << 32));
    assert!(Arc::ptr_eq(&desk.viewer.look().surface, &began));
    assert!(!desk.screen.resize(SIZE));
}
