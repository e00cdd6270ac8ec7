//! A hostile driver of configuration space, memory regions and vectors.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::config::{Config, Identity, LEN};
use super::memory::{Place, Placed, Window};
use super::testing::{Shown, capabilities};
use super::{BUS, Function, HostBridge, PAGE, Root};
use crate::bus::BusDevice;
use crate::device::{Device, Error, State};
use crate::testing::Random;

const REGION: u64 = 0x1000;
const WINDOW: Range<u64> = 0x4000_0000..0x4001_0000;

/// A function with memory that remembers the last write, and reads as its own number.
struct Plain {
    config: Config,
    place: Arc<Place>,
    number: u8,
    written: Arc<AtomicU64>,
}

impl Plain {
    fn new(number: u8) -> Self {
        let identity = Identity { vendor: 0x1234, device: number.into(), ..Identity::default() };
        let mut config = Config::new(identity);
        config.add_memory(WINDOW.start + REGION * u64::from(number), REGION);
        config.add_capability(9, &[number; 6], &[0, 0xf0]);
        config.add_capability(5, &[1, 2, 3], &[]);
        let place = Arc::new(Place::new(WINDOW, REGION));
        Self { config, place, number, written: Arc::default() }
    }
}

impl Function for Plain {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config.write(offset, data);
        self.place.set(self.config.memory());
    }

    fn load_config(&mut self, saved: &[u8; LEN]) -> Result<(), Error> {
        self.config.load(saved)
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        assert!(offset < REGION);
        data.fill(self.number);
    }

    fn write(&mut self, offset: u64, _data: &[u8]) {
        self.written.store(offset, Ordering::SeqCst);
    }
}

struct Board {
    root: Root,
    window: Window,
    pages: [Shown; 3],
}

fn board() -> Board {
    let pages = [Shown::default(), Shown::default(), Shown::default()];
    let functions: Vec<_> = [1, 2].into_iter().map(Plain::new).collect();
    let places: Vec<_> = functions.iter().map(|it| it.place.clone()).collect();
    let functions = functions.into_iter().map(|it| -> Arc<Mutex<dyn Function>> { Arc::new(Mutex::new(it)) });
    let mut all: Vec<Arc<Mutex<dyn Function>>> = vec![Arc::new(Mutex::new(HostBridge::new()))];
    all.extend(functions);
    let placed: Vec<Placed> = places.into_iter().zip(all[1..].iter().cloned()).collect();
    let window = Window::new(WINDOW.start, placed.into());
    let shown = pages.clone().into_iter().map(|it| Box::new(it) as Box<dyn super::Page>);
    Board { root: Root::new(all.into_iter().zip(shown)), window, pages }
}

impl Board {
    fn read<const LEN: usize>(&mut self, device: u64, register: u64) -> [u8; LEN] {
        let mut data = [0x77; LEN];
        self.root.read(device * 8 * PAGE + register, &mut data);
        data
    }

    fn write(&mut self, device: u64, register: u64, data: &[u8]) {
        self.root.write(device * 8 * PAGE + register, data);
    }

    /// What the guest reads at `address`, in the window or not.
    fn at(&mut self, address: u64) -> u8 {
        let mut data = [0];
        self.window.read(address.wrapping_sub(WINDOW.start), &mut data);
        data[0]
    }

    fn enable(&mut self, device: u64, on: bool) {
        self.write(device, 4, &[if on { 2 } else { 0 }, 0]);
    }
}

#[test]
fn functions_that_are_absent_read_as_ones() {
    let mut board = board();
    for function in 0..256 {
        let mut id = [0; 4];
        board.root.read(function * PAGE, &mut id);
        let there = function % 8 == 0 && function / 8 < 3;
        assert_eq!(id != [0xff; 4], there, "{function:#x}");
        board.root.write(function * PAGE + 4, &[0xff; 4]);
    }
    for offset in [BUS, BUS + 1, 1 << 40, u64::MAX] {
        board.root.write(offset, &[0; 8]);
        let mut data = [0; 8];
        board.root.read(offset, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}

#[test]
fn the_guest_sizes_a_region_by_writing_ones() {
    let mut board = board();
    board.write(1, 0x10, &[0xff; 4]);
    board.write(1, 0x14, &[0xff; 4]);
    assert_eq!(board.read(1, 0x10), (!(REGION - 1) | 4).to_le_bytes());
    for register in (0x18..0x28).step_by(4).chain([0x30]) {
        board.write(1, register, &[0xff; 4]);
        assert_eq!(board.read(1, register), [0; 4], "{register:#x}");
    }
    for register in (0x10..0x28).step_by(4) {
        board.write(0, register, &[0xff; 4]);
        assert_eq!(board.read(0, register), [0; 4], "the bridge has none");
    }
}

#[test]
fn a_region_is_where_the_guest_moves_it_within_the_window() {
    let mut board = board();
    assert_eq!(board.at(WINDOW.start + REGION), 0xff, "memory is not enabled");
    board.enable(1, true);
    board.enable(2, true);
    assert_eq!([1, 2, 3].map(|number| board.at(WINDOW.start + number * REGION)), [1, 2, 0xff]);
    let outside = [0, 0x1000, WINDOW.start - REGION, WINDOW.end, 1 << 46, 1 << 47, !(REGION - 1)];
    for base in outside {
        board.write(1, 0x10, &base.to_le_bytes());
        for address in [base, base.wrapping_add(REGION - 1), WINDOW.start + REGION] {
            assert_eq!(board.at(address), 0xff, "{base:#x}");
        }
        assert_eq!(board.at(WINDOW.start + 2 * REGION), 2);
    }
    // Where two are, the first answers; when it goes the other does.
    board.write(1, 0x10, &(WINDOW.start + 2 * REGION).to_le_bytes());
    assert_eq!(board.at(WINDOW.start + 2 * REGION), 1);
    board.enable(1, false);
    assert_eq!(board.at(WINDOW.start + 2 * REGION), 2);
    board.enable(1, true);
    board.write(1, 0x10, &(WINDOW.end - REGION).to_le_bytes());
    assert_eq!([board.at(WINDOW.end - 1), board.at(WINDOW.end - REGION - 1)], [1, 0xff]);
}

#[test]
fn writes_change_what_they_may_whatever_their_width_and_place() {
    let mut board = board();
    let mut random = Random::new(52);
    let writable = |device: u64, register: u64| match (device, register) {
        (_, 4) => 0x06,
        (_, 5) => 0x04,
        (_, 0x0c | 0x3c) => 0xff,
        (1 | 2, 0x11) => 0xf0,
        (1 | 2, 0x12..=0x17) => 0xff,
        (1 | 2, 0x43) => 0xf0,
        _ => 0u8,
    };
    let mut model: Vec<[u8; LEN]> = (0..3).map(|device| board.read(device, 0)).collect();
    for _ in 0..100_000 {
        let (device, register) = (random.below(3), random.below(0x120));
        let register = if random.below(20) == 0 { 0xff0 + random.below(16) } else { register };
        let len = [1, 2, 3, 4, 8, 16][random.below(6) as usize];
        let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        board.write(device, register, &data);
        for (at, byte) in (register..LEN as u64).zip(&data) {
            let mask = writable(device, at);
            let old = &mut model[device as usize][at as usize];
            *old = *old & !mask | byte & mask;
        }
        assert_eq!(board.read(device, 0), model[device as usize], "{len} bytes at {register:#x}");
        assert_eq!(board.pages[device as usize].bytes(), model[device as usize], "what the guest reads");
    }
}

#[test]
fn capabilities_are_a_list() {
    let plain = Plain::new(3);
    assert_eq!(capabilities(&plain), [(9, 0x40), (5, 0x48)]);
    assert_eq!(plain.config.bytes()[6] & 0x10, 0x10);
    assert_eq!(plain.config.bytes()[0x42..0x48], [3; 6]);
    assert_eq!(plain.config.bytes()[0x4a..0x4d], [1, 2, 3]);
    assert_eq!(capabilities(&HostBridge::new()), []);
}

#[test]
fn bars_that_the_guest_cannot_change_are_known() {
    assert_eq!(HostBridge::new().config().constant_bars(), (0x10, 0x24));
    assert_eq!(Plain::new(1).config().constant_bars(), (0x18, 0x1c));
}

#[test]
fn a_bus_is_the_same_after_it_was_saved_and_loaded() {
    let mut saved = board();
    saved.enable(1, true);
    saved.write(2, 0x10, &(WINDOW.start + 5 * REGION).to_le_bytes());
    saved.write(2, 0x3c, &[9]);
    let state = saved.root.save().unwrap();
    let mut loaded = board();
    loaded.root.load(state.clone()).unwrap();
    assert_eq!(loaded.root.save().unwrap(), state);
    for (page, was) in loaded.pages.iter().zip(&saved.pages) {
        assert_eq!(page.bytes(), was.bytes());
    }
}

#[test]
fn a_configuration_space_that_cannot_be_is_not_loaded() {
    let mut board = board();
    let state = board.root.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    for hostile in [
        r#"{"functions":[]}"#.to_owned(),
        r#"{"functions":["","",""]}"#.to_owned(),
        // The bridge's vendor.
        text.replacen(":[\"N", ":[\"O", 1),
        text.replace("]}", r#",""]}"#),
        "{}".to_owned(),
    ] {
        assert_ne!(hostile, text);
        let state: State = serde_json::from_str(&hostile).unwrap();
        assert!(board.root.load(state).is_err(), "{hostile}");
    }
}
