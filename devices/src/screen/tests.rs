//! A screen between a device and its viewers.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

const SIZE: Size = Size { width: 4, height: 8 };

fn screen() -> Arc<Screen> {
    Arc::new(Screen::new(SIZE).unwrap())
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
}

/// A picture on which each pixel is its number in the memory, with a stride of 5 from pixel 2 on.
fn picture() -> Arc<Surface> {
    let memory = PixelMemory::new(2 + 5 * 8).unwrap();
    memory.write(0, 0..100);
    Arc::new(Surface::new(SIZE, 2, 5, Arc::new(memory)))
}

#[test]
fn a_viewer_sees_everything_first_and_then_what_was_drawn() {
    let screen = screen();
    let picture = picture();
    screen.put_up(picture.clone());
    let mut viewer = screen.attach().unwrap();
    let first = viewer.look();
    assert_eq!((first.replaced, first.rows), (true, vec![0..8]));
    assert!(!readable(viewer.changed()));
    screen.drawn(&picture, 1..3);
    screen.drawn(&picture, 2..4);
    screen.drawn(&picture, 7..100);
    assert!(readable(viewer.changed()));
    let mut late = screen.attach().unwrap();
    assert_eq!(late.look().rows, [0..8]);
    let next = viewer.look();
    assert_eq!((next.replaced, next.rows), (false, vec![1..4, 7..8]));
    assert_eq!(viewer.look().rows, []);
    assert_eq!(late.look().rows, []);
}

#[test]
fn what_is_drawn_on_a_picture_that_is_not_up_wakes_nobody_up() {
    let screen = screen();
    let mut viewer = screen.attach().unwrap();
    viewer.look();
    screen.drawn(&picture(), 0..8);
    assert!(!readable(viewer.changed()));
    assert_eq!(viewer.look().rows, []);
}

#[test]
fn another_picture_replaces_all_rows() {
    let screen = screen();
    let mut viewer = screen.attach().unwrap();
    viewer.look();
    let small = Size { width: 2, height: 2 };
    screen.put_up(Arc::new(Surface::black(small)));
    assert!(readable(viewer.changed()));
    let look = viewer.look();
    assert_eq!((look.replaced, look.rows, look.surface.size()), (true, vec![0..2], small));
}

#[test]
fn what_a_driver_puts_up_comes_down_to_what_the_machine_began_with() {
    let screen = screen();
    let mut viewer = screen.attach().unwrap();
    let base = picture();
    screen.begin(base.clone());
    screen.take_down();
    assert!(viewer.look().replaced);
    screen.take_down();
    assert!(!viewer.look().replaced);
    screen.put_up(Arc::new(Surface::black(SIZE)));
    screen.take_down();
    let look = viewer.look();
    assert!(look.replaced && Arc::ptr_eq(&look.surface, &base));
}

#[test]
fn pixels_are_read_by_row_and_are_black_outside() {
    let picture = picture();
    let mut row = [9; 6];
    picture.read(1, 2, &mut row);
    assert_eq!(row, [13, 14, 15, 0, 0, 0]);
    for (x, y) in [(4, 0), (0, 8), (u32::MAX, u32::MAX)] {
        picture.read(x, y, &mut row);
        assert_eq!(row, [0; 6], "{x} {y}");
    }
    let huge = Surface::new(SIZE, usize::MAX, usize::MAX, Arc::new(PixelMemory::new(1).unwrap()));
    huge.read(1, 1, &mut row);
    assert_eq!(row, [0; 6]);
}

#[test]
fn a_cursor_is_seen_once_and_so_is_that_it_has_gone() {
    let screen = screen();
    let cursor = Cursor { hot_x: 1, hot_y: 2, pixels: vec![5; 4096] };
    screen.set_cursor(Some(cursor.clone()));
    let mut viewer = screen.attach().unwrap();
    assert_eq!(viewer.look().cursor.flatten().as_deref(), Some(&cursor));
    screen.set_cursor(Some(cursor));
    assert!(viewer.look().cursor.is_none());
    screen.set_cursor(None);
    assert!(matches!(viewer.look().cursor, Some(None)));
}

#[test]
fn a_size_is_wished_only_where_a_device_takes_it() {
    let screen = screen();
    let wanted = Size { width: 640, height: 480 };
    assert!(!screen.resize(wanted));
    assert_eq!((screen.wish(), readable(screen.wished())), (SIZE, false));
    screen.set_resizable(true);
    assert!(screen.resize(wanted));
    assert_eq!((screen.wish(), readable(screen.wished())), (wanted, true));
}

#[test]
fn viewers_are_limited_and_make_room_when_they_go() {
    let screen = screen();
    let viewers: Vec<_> = (0..MOST_VIEWERS).map(|_| screen.attach().unwrap()).collect();
    assert!(screen.attach().is_err());
    drop(viewers);
    assert!(screen.attach().unwrap().changed().as_fd().try_clone_to_owned().is_ok());
}

/// Pixels that have to be asked.
struct Silent(Mutex<Vec<Range<usize>>>);

impl Pixels for Silent {
    fn read(&self, _at: usize, into: &mut [u32]) {
        into.fill(1);
    }

    fn is_silent(&self) -> bool {
        true
    }

    fn changed(&self, report: &mut dyn FnMut(Range<usize>)) {
        self.0.lock().unwrap().drain(..).for_each(report);
    }
}

#[test]
fn what_one_viewer_asks_of_silent_pixels_every_viewer_sees() {
    let screen = screen();
    let silent = Arc::new(Silent(Mutex::default()));
    screen.put_up(Arc::new(Surface::new(SIZE, 0, 4, silent.clone())));
    let mut viewers = [screen.attach().unwrap(), screen.attach().unwrap()];
    assert!(viewers.iter_mut().all(|it| it.look().silent));
    silent.0.lock().unwrap().extend([3..5, 16..20, 31..4096, 90..99]);
    for viewer in &mut viewers {
        assert_eq!(viewer.look().rows, [0..2, 4..5, 7..8]);
        assert_eq!(viewer.look().rows, []);
    }
}

#[test]
fn a_position_reaches_from_edge_to_edge() {
    assert_eq!(SIZE.position(0, 0), Input::Pointer { x: 0, y: 0 });
    assert_eq!(SIZE.position(3, u32::MAX), Input::Pointer { x: ABS_MAX, y: ABS_MAX });
    let dot = Size { width: 1, height: 1 };
    assert_eq!(dot.position(7, 0), Input::Pointer { x: 0, y: 0 });
}

#[test]
fn a_size_has_sides_of_1_to_4095() {
    assert_eq!(Size::new(1, MOST).map(Size::area), Some(4095));
    for (width, height) in [(0, 1), (1, 0), (MOST + 1, 1), (1, u32::MAX)] {
        assert_eq!(Size::new(width, height), None);
    }
}
