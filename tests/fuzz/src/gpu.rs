//! The graphics card between a guest that sends any command, and a viewer that looks and wishes sizes meanwhile.

use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::screen::{MOST, Screen, Size, Viewer};
use devices::virtio::VirtioDevice;
use devices::virtio::gpu::Gpu;
use devices::virtio::testing::{BUFFERS, Driver, UP, every_queue_serves};

use crate::drive::{drive, reload};
use crate::each;

const MOST_ACTS: usize = 200;
/// Where the guest has its commands, the answers, and what it draws.
const COMMAND: u64 = BUFFERS;
const ANSWER: u64 = BUFFERS + 0x1000;
const PICTURE: u64 = BUFFERS + 0x2000;

#[derive(Arbitrary, Debug)]
enum Act {
    /// A command, what follows it, how many bytes of it there are at most, and the room for the answer.
    Command(u8, [Word; 10], u8, u16),
    /// What follows a command on the cursor's queue, and whether that only moves.
    Cursor([Word; 8], bool),
    Draw(u16, u8),
    Wish(u16, u16),
    Look,
    Reload,
    Reset,
}

/// A word of a command: mostly one that makes sense somewhere.
#[derive(Debug)]
struct Word(u32);

impl<'a> Arbitrary<'a> for Word {
    fn arbitrary(data: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match data.arbitrary::<u8>()? % 8 {
            0..3 => u32::from(data.arbitrary::<u8>()? & 3),
            3 => 64,
            4 => data.arbitrary::<u16>()?.into(),
            5 => PICTURE as u32 + u32::from(data.arbitrary::<u16>()?),
            6 => [0, 1 << 31, u32::MAX, 0x30_0000, MOST][usize::from(data.arbitrary::<u8>()? % 5)],
            _ => data.arbitrary()?,
        }))
    }
}

pub fn run(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let screen = Arc::new(Screen::new(Size { width: 64, height: 64 }).unwrap());
    let mut viewer = screen.attach().unwrap();
    let make = |_: &_| -> Box<dyn VirtioDevice> { Box::new(Gpu::new(screen.clone())) };
    if first % 4 == 0 {
        return drive(data, make, |_| look(&mut viewer), every_queue_serves);
    }
    let mut driver = Driver::new(make);
    driver.start(0);
    for act in each(data, MOST_ACTS) {
        match act {
            Act::Look => look(&mut viewer),
            Act::Wish(width, height) => {
                let size = Size::new(u32::from(width) % (MOST + 1), u32::from(height) % (MOST + 1));
                size.map(|size| screen.resize(size));
                driver.serve_sources();
            }
            act => apply(&mut driver, &act),
        }
        assert_eq!(driver.status(), UP, "a command is never a reason for a reset");
    }
    driver.assert_contract(every_queue_serves);
    look(&mut viewer);
}

fn apply(driver: &mut Driver, act: &Act) {
    match act {
        Act::Command(command, words, most, room) => {
            let words: Vec<_> = words.iter().map(|word| word.0).collect();
            let command = 0x100 + u32::from(command % 12);
            send(
                driver,
                0,
                &[&[command, u32::from(*most) & 1, 7, 7, 7, 0], &words[..]].concat(),
                *most,
                *room,
            );
        }
        Act::Cursor(words, moves) => {
            let words: Vec<_> = words.iter().map(|word| word.0).collect();
            let command = 0x300 + u32::from(*moves);
            send(driver, 1, &[&[command, 0, 0, 0, 0, 0], &words[..]].concat(), u8::MAX, 0);
        }
        Act::Draw(at, colour) => driver.write(PICTURE + u64::from(*at), &[*colour; 300]),
        Act::Reload => reload(driver),
        _ => driver.start(0),
    }
}

/// Sends words, of which at most four times `most` bytes, and expects an answer of at least a header if there is room.
fn send(driver: &mut Driver, queue: usize, words: &[u32], most: u8, room: u16) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let len = bytes.len().min(4 * usize::from(most)) as u32;
    driver.write(COMMAND, &bytes);
    let room = u32::from(room % 0x1000);
    let parts = [(COMMAND, len, false), (ANSWER, room, true)];
    let head = driver.add(queue, &parts[..1 + usize::from(room > 0)]);
    driver.kick(queue);
    let used = driver.used(queue);
    assert!(matches!(used[..], [(it, len)] if it == head && len <= room), "{used:?}");
    assert!(queue == 1 || used[0].1 >= room.min(24), "{used:?}");
}

fn look(viewer: &mut Viewer) {
    let look = viewer.look();
    let size = look.surface.size();
    let mut row = vec![0; size.width as usize];
    for rows in look.rows {
        assert!(rows.start < rows.end && rows.end <= size.height, "{rows:?} of {size:?}");
        look.surface.read(0, rows.start, &mut row);
        look.surface.read(0, rows.end - 1, &mut row);
    }
    assert!(
        look.cursor.flatten().is_none_or(|it| it.pixels.len() == 64 * 64 && it.hot_x < 64 && it.hot_y < 64)
    );
}
