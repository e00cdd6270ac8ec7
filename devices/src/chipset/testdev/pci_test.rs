//! pci-testdev: a PCI function that counts the writes to one byte, with and without an exit (QEMU
//! `docs/specs/pci-testdev.rst`; PCI Local Bus 3.0 §6 for its configuration space).
//!
//! Each of its two windows begins with registers: the test's number, which starts it when written; the width, the offset and
//! the data of the writes that it counts; how many it has counted; its name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::give;
use super::pci::{Place, Wiring};
use crate::bus::BusDevice;
use crate::device::{Device, Error, State, check};

/// What counts a guest's writes without an exit.
pub trait Doorbell: Send {
    /// Counts writes of one byte at `offset` of a window from now on: those of `data`, or all. Returns whether it can.
    fn connect(&mut self, place: Place, offset: u32, data: Option<u8>) -> bool;
    /// Counts no more.
    fn disconnect(&mut self);
    /// How many there were since the last call.
    fn take(&mut self) -> u32;
}

/// The lengths of the windows in bytes: memory, ports.
pub const BAR_LEN: [u32; 2] = [4096, 256];

/// Offsets in the configuration space.
const COMMAND: usize = 0x04;
const BARS: [usize; 2] = [0x10, 0x14];
const INTERRUPT_LINE: usize = 0x3c;
/// Command bits that enable the port window and the memory window.
const ENABLE_PORTS: u8 = 1;
const ENABLE_MEMORY: u8 = 2;

/// The tests of each window, by number.
const TESTS: [&str; 3] = ["no-eventfd", "wildcard-eventfd", "datamatch-eventfd"];
const NO_EVENTFD: usize = 0;
const WILDCARD: usize = 1;
/// What a test writes.
const DATA: u8 = 0xfa;
/// The width of a test's writes in bytes.
const WIDTH: u8 = 1;

/// A test that has been started.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    place: Place,
    number: usize,
    count: u32,
}

/// The guest-visible state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    command: u8,
    interrupt_line: u8,
    /// Whether a window's register holds all ones, as a driver writes them to learn its length.
    sizing: [bool; 2],
    test: Option<Test>,
}

/// The function.
pub struct PciTest {
    wiring: Wiring,
    state: Registers,
    doorbell: Box<dyn Doorbell>,
}

impl PciTest {
    /// With its windows where `wiring` says, enabled, as firmware leaves them.
    pub fn new(wiring: Wiring, doorbell: Box<dyn Doorbell>) -> Self {
        let command = ENABLE_PORTS | ENABLE_MEMORY;
        Self {
            wiring,
            state: Registers { command, interrupt_line: 0, sizing: [false; 2], test: None },
            doorbell,
        }
    }

    /// Reads from the configuration space.
    pub(super) fn read_config(&self, byte: u8, data: &mut [u8]) {
        give(&self.config(), byte.into(), data, 0);
    }

    /// The configuration space up to its last register that is not 0 (PCI 3.0 §6.1).
    fn config(&self) -> [u8; 64] {
        let mut config = [0; 64];
        config[..4].copy_from_slice(&[0x36, 0x1b, 0x05, 0x00]);
        config[COMMAND] = self.state.command;
        config[0x0b] = 0xff; // a class of its own
        for (bar, at) in BARS.iter().enumerate() {
            config[*at..at + 4].copy_from_slice(&self.bar(bar).to_le_bytes());
        }
        config[0x2c..0x30].copy_from_slice(&[0xf4, 0x1a, 0x00, 0x11]);
        config[INTERRUPT_LINE] = self.state.interrupt_line;
        config
    }

    /// What the register of a window holds. Windows stay where the board has put them, whatever else is written.
    fn bar(&self, bar: usize) -> u32 {
        let (address, kind) = match bar {
            0 => (self.wiring.memory, 0),
            _ => (self.wiring.port.into(), 1),
        };
        (if self.state.sizing[bar] { !(BAR_LEN[bar] - 1) } else { address }) | kind
    }

    /// Writes to the configuration space.
    pub(super) fn write_config(&mut self, byte: u8, data: &[u8]) {
        let mut config = self.config();
        let from = usize::from(byte).min(config.len());
        for (byte, value) in config[from..].iter_mut().zip(data) {
            *byte = *value;
        }
        let written = |at: usize| (from..from.saturating_add(data.len())).contains(&at);
        self.state.command = config[COMMAND] & (ENABLE_PORTS | ENABLE_MEMORY);
        self.state.interrupt_line = config[INTERRUPT_LINE];
        for (bar, at) in BARS.into_iter().enumerate() {
            let value = u32::from_le_bytes([config[at], config[at + 1], config[at + 2], config[at + 3]]);
            let mask = !(BAR_LEN[bar] - 1);
            if (at..at + 4).any(written) {
                self.state.sizing[bar] = value & mask == mask;
            }
        }
        if self.state.test.as_ref().is_some_and(|test| !self.answers(test.place)) {
            self.stop();
        }
    }

    /// Whether a window is where the board has put it.
    fn answers(&self, place: Place) -> bool {
        match place {
            Place::Memory => self.state.command & ENABLE_MEMORY != 0 && !self.state.sizing[0],
            Place::Port => self.state.command & ENABLE_PORTS != 0 && !self.state.sizing[1],
        }
    }

    fn stop(&mut self) {
        if self.state.test.take().is_some_and(|test| test.number != NO_EVENTFD) {
            self.doorbell.disconnect();
        }
    }

    fn start(&mut self, place: Place, number: usize) {
        self.stop();
        if number >= TESTS.len() {
            return;
        }
        if number != NO_EVENTFD {
            let data = (number != WILDCARD).then_some(DATA);
            // Another test's writes do not count.
            self.doorbell.take();
            if !self.doorbell.connect(place, offset(place, number), data) {
                return;
            }
        }
        self.state.test = Some(Test { place, number, count: 0 });
    }

    /// Counts what the doorbell has counted.
    fn count(&mut self) {
        if let Some(test) = self.state.test.as_mut().filter(|test| test.number != NO_EVENTFD) {
            test.count = test.count.wrapping_add(self.doorbell.take());
        }
    }

    /// The registers of a window: of the test that runs there, or all zeros.
    fn registers(&mut self, place: Place) -> Vec<u8> {
        self.count();
        let Some(test) = self.state.test.as_ref().filter(|test| test.place == place) else {
            return Vec::new();
        };
        let kind = if place == Place::Memory { "mmio" } else { "portio" };
        let numbers = [offset(place, test.number), DATA.into(), test.count];
        let mut registers = vec![test.number as u8, WIDTH, 0, 0];
        registers.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        registers.extend(format!("{kind}-{}\0", TESTS[test.number]).bytes());
        registers
    }

    fn write(&mut self, place: Place, at: u64, data: &[u8]) {
        match (at, data) {
            (0, [number, ..]) => self.start(place, usize::from(*number)),
            _ => {
                // The others' writes never come here: the doorbell has them.
                let here = |test: &&mut Test| test.place == place && test.number == NO_EVENTFD;
                let Some(test) = self.state.test.as_mut().filter(here) else { return };
                if at == u64::from(offset(place, NO_EVENTFD)) {
                    let counted = data.iter().filter(|byte| **byte == DATA).count();
                    test.count = test.count.wrapping_add(counted as u32);
                }
            }
        }
    }
}

impl Device for PciTest {
    fn name(&self) -> &'static str {
        "pci-testdev"
    }

    fn save(&mut self) -> Result<State, Error> {
        self.count();
        Ok(State::of(&self.state))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        let state: Registers = state.take()?;
        check(state.command & !(ENABLE_PORTS | ENABLE_MEMORY) == 0, "command")?;
        check(state.test.as_ref().is_none_or(|test| test.number < TESTS.len()), "test")?;
        self.stop();
        self.state = Registers { test: None, ..state.clone() };
        if let Some(test) = state.test {
            check(self.answers(test.place), "test")?;
            self.start(test.place, test.number);
            check(self.state.test.is_some(), "test")?;
            self.state.test = Some(test);
        }
        Ok(())
    }
}

/// Where a test's writes go: to the upper half of the window.
fn offset(place: Place, number: usize) -> u32 {
    BAR_LEN[usize::from(place == Place::Port)] / 2 + number as u32
}

/// A window of the function's.
pub struct Window {
    function: Arc<Mutex<PciTest>>,
    place: Place,
}

impl Window {
    /// The window of `function` that is at `place`.
    pub fn new(function: Arc<Mutex<PciTest>>, place: Place) -> Self {
        Self { function, place }
    }

    fn function(&self) -> Option<MutexGuard<'_, PciTest>> {
        let function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        function.answers(self.place).then_some(function)
    }
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.function() {
            Some(mut function) => give(&function.registers(self.place), offset, data, 0),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(mut function) = self.function() {
            function.write(self.place, offset, data);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::testing::storm;

    /// A doorbell that rings for itself, and remembers what it is connected to.
    #[derive(Default)]
    pub(in super::super) struct Rung {
        connected: Option<(Place, u32, Option<u8>)>,
        count: u32,
        broken: bool,
    }

    impl Doorbell for Arc<Mutex<Rung>> {
        fn connect(&mut self, place: Place, offset: u32, data: Option<u8>) -> bool {
            let mut rung = self.lock().unwrap();
            assert!(rung.connected.is_none());
            rung.connected = Some((place, offset, data)).filter(|_| !rung.broken);
            rung.connected.is_some()
        }

        fn disconnect(&mut self) {
            assert!(self.lock().unwrap().connected.take().is_some());
        }

        fn take(&mut self) -> u32 {
            std::mem::take(&mut self.lock().unwrap().count)
        }
    }

    pub(in super::super) fn function() -> (PciTest, Arc<Mutex<Rung>>) {
        let rung = Arc::<Mutex<Rung>>::default();
        let wiring = Wiring { memory: 0xfe00_0000, port: 0xc000 };
        (PciTest::new(wiring, Box::new(rung.clone())), rung)
    }

    fn config<const LEN: usize>(function: &PciTest, byte: u8) -> [u8; LEN] {
        let mut data = [0x55; LEN];
        function.read_config(byte, &mut data);
        data
    }

    fn window(place: Place) -> (Window, Arc<Mutex<PciTest>>, Arc<Mutex<Rung>>) {
        let (function, rung) = function();
        let function = Arc::new(Mutex::new(function));
        (Window::new(function.clone(), place), function, rung)
    }

    fn register(window: &mut Window, at: u64) -> u32 {
        let mut data = [0; 4];
        window.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn windows_are_assigned_enabled_and_tell_their_lengths() {
        let (mut function, _) = function();
        assert_eq!(config(&function, 0), [0x36, 0x1b, 5, 0, 3, 0, 0, 0, 0, 0, 0, 0xff]);
        for (at, assigned, sized) in
            [(0x10, 0xfe00_0000u32, 0xffff_f000u32), (0x14, 0xc001, 0xffff_ff01), (0x18, 0, 0)]
        {
            assert_eq!(u32::from_le_bytes(config(&function, at)), assigned);
            function.write_config(at, &[0xff; 4]);
            assert_eq!(u32::from_le_bytes(config(&function, at)), sized);
            function.write_config(at, &assigned.to_le_bytes());
            assert_eq!(u32::from_le_bytes(config(&function, at)), assigned);
            function.write_config(at, &0x1234_5000u32.to_le_bytes());
            assert_eq!(u32::from_le_bytes(config(&function, at)), assigned, "it does not move");
        }
    }

    #[test]
    fn what_is_read_only_stays() {
        let (mut function, _) = function();
        let before: [u8; 64] = config(&function, 0);
        for at in (0..=255).filter(|at| !(0x10..0x18).contains(at) && ![4, 0x3c].contains(at)) {
            function.write_config(at, &[0xa5]);
        }
        assert_eq!(config(&function, 0), before);
        assert_eq!(config(&function, 0xfc), [0; 4]);
    }

    #[test]
    fn a_window_that_is_off_reads_as_ones_and_counts_nothing() {
        for (place, other) in [(Place::Memory, ENABLE_PORTS), (Place::Port, ENABLE_MEMORY)] {
            let (mut window, function, rung) = window(place);
            window.write(0, &[1]);
            assert!(rung.lock().unwrap().connected.is_some());
            function.lock().unwrap().write_config(4, &[other]);
            assert!(rung.lock().unwrap().connected.is_none());
            assert_eq!(register(&mut window, 0), u32::MAX);
            window.write(0, &[0]);
            function.lock().unwrap().write_config(4, &[3]);
            assert_eq!(register(&mut window, 0), 0);
        }
    }

    #[test]
    fn every_test_counts_its_writes() {
        for (place, base) in [(Place::Memory, 2048), (Place::Port, 128)] {
            for (number, data) in [(0u8, None), (1, Some(None)), (2, Some(Some(DATA)))] {
                let (mut window, _, rung) = window(place);
                window.write(0, &[number]);
                let offset = base + u32::from(number);
                assert_eq!(rung.lock().unwrap().connected, data.map(|data| (place, offset, data)));
                assert_eq!(register(&mut window, 0), 0x100 | u32::from(number));
                assert_eq!((register(&mut window, 4), register(&mut window, 8)), (offset, 0xfa));
                assert_eq!(register(&mut window, 12), 0);
                window.write(offset.into(), &[DATA]);
                window.write(offset.into(), &[DATA ^ 1]);
                window.write(u64::from(offset) + 1, &[DATA]);
                assert_eq!(register(&mut window, 12), u32::from(number == 0), "writes that exit");
                rung.lock().unwrap().count = 3;
                assert_eq!(register(&mut window, 12), if number == 0 { 1 } else { 3 });
                window.write(0, &[number]);
                assert_eq!(register(&mut window, 12), 0, "a new start");
            }
        }
    }

    #[test]
    fn a_test_that_runs_goes_on_in_a_function_that_is_loaded() {
        let ((mut saved, doorbell), (mut loaded, new)) = (function(), function());
        saved.start(Place::Port, 2);
        doorbell.lock().unwrap().count = 5;
        let state = saved.save().unwrap();
        loaded.load(state.clone()).unwrap();
        assert_eq!(loaded.save().unwrap(), state);
        assert_eq!(new.lock().unwrap().connected, Some((Place::Port, 130, Some(DATA))));
        new.lock().unwrap().count = 2;
        let registers = loaded.registers(Place::Port);
        assert_eq!(registers[12..16], [7, 0, 0, 0]);
        for (field, wrong) in [(r#""number":2"#, r#""number":3"#), (r#""command":3"#, r#""command":2"#)] {
            let text = serde_json::to_string(&state).unwrap().replace(field, wrong);
            loaded.load(serde_json::from_str(&text).unwrap()).unwrap_err();
        }
    }

    #[test]
    fn names_tell_what_is_tested() {
        let (mut window, _, _) = window(Place::Port);
        window.write(0, &[2]);
        let mut name = [0x55; 26];
        window.read(16, &mut name);
        assert_eq!(&name, b"portio-datamatch-eventfd\0\0");
    }

    #[test]
    fn a_test_that_does_not_exist_or_cannot_be_has_no_width() {
        let (mut window, _, rung) = window(Place::Memory);
        for number in [3, 255] {
            window.write(0, &[0]);
            window.write(0, &[number]);
            assert_eq!((register(&mut window, 0), register(&mut window, 4)), (0, 0));
        }
        rung.lock().unwrap().broken = true;
        window.write(0, &[1]);
        assert_eq!(register(&mut window, 0), 0);
        window.write(0, &[0]);
        assert_eq!(register(&mut window, 0), 0x100);
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        for place in [Place::Memory, Place::Port] {
            let (mut window, _, _) = window(place);
            storm(&mut window, 40, 28, |_| {});
        }
    }
}
