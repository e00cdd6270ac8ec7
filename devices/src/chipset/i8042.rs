//! An i8042 keyboard controller with nothing plugged in (IBM PS/2 technical reference, "Keyboard/Auxiliary
//! Device Controller"). It is here because kernels reset a PC through it; whatever else a driver asks is
//! answered at once, so that probing it ends without a timeout or a warning.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::chipset::power::{PowerSwitch, Request};
use crate::device::{Device, Error, State, check};

/// How many ports the controller takes. The ones between data and command belong to other chips: they float.
pub const LEN: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

/// Status: a byte waits in the data port.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the keyboard is not locked. Linux warns of a locked one.
const UNLOCKED: u8 = 1 << 4;

/// Command byte: both devices disabled, no interrupt, no translation, self test passed.
const INITIAL_COMMAND_BYTE: u8 = 0x34;
/// Output port: A20 is on and reset is not asserted.
const OUTPUT_PORT: u8 = 0x03;

/// The controller: data port at offset 0, command and status at offset 4.
pub struct I8042 {
    switch: Arc<dyn PowerSwitch>,
    state: Registers,
}

/// The guest-visible state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    command_byte: u8,
    /// The command whose parameter the next data byte is.
    command: Option<u8>,
    answer: Option<u8>,
}

impl I8042 {
    /// A controller whose reset line is `switch`.
    pub fn new(switch: Arc<dyn PowerSwitch>) -> Self {
        let command_byte = INITIAL_COMMAND_BYTE;
        Self { switch, state: Registers { command_byte, command: None, answer: None } }
    }

    fn command(&mut self, command: u8) {
        self.state.command = None;
        match command {
            0x20 => self.state.answer = Some(self.state.command_byte),
            command if has_parameter(command) => self.state.command = Some(command),
            0xa7 => self.state.command_byte |= 0x20,
            0xa8 => self.state.command_byte &= !0x20,
            // Test of the auxiliary and the keyboard port: the clock line is stuck low, as nothing is there.
            0xa9 | 0xab => self.state.answer = Some(0x01),
            0xaa => self.state.answer = Some(0x55),
            0xad => self.state.command_byte |= 0x10,
            0xae => self.state.command_byte &= !0x10,
            0xd0 => self.state.answer = Some(OUTPUT_PORT),
            0xfe => self.switch.request(Request::Reset),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        match self.state.command.take() {
            Some(0x60) => self.state.command_byte = value,
            // Both come back as if from the keyboard: there is no auxiliary port to mark them with.
            Some(0xd2 | 0xd3) => self.state.answer = Some(value),
            _ => {}
        }
    }

    fn status(&self) -> u8 {
        UNLOCKED | if self.state.answer.is_some() { OUTPUT_FULL } else { 0 }
    }
}

/// Whether a data byte follows: write command byte, output port, keyboard or auxiliary output buffer, auxiliary device.
fn has_parameter(command: u8) -> bool {
    matches!(command, 0x60 | 0xd1..=0xd4)
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn save(&mut self) -> Result<State, Error> {
        Ok(State::of(&self.state))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        let state: Registers = state.take()?;
        check(state.command.is_none_or(has_parameter), "command")?;
        self.state = state;
        Ok(())
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = match offset {
                DATA => self.state.answer.take().unwrap_or(0),
                COMMAND => self.status(),
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            match offset {
                DATA => self.data(*byte),
                COMMAND => self.command(*byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Switch, storm};

    fn read(device: &mut I8042, offset: u64) -> u8 {
        let mut data = [0];
        device.read(offset, &mut data);
        data[0]
    }

    fn ask(device: &mut I8042, command: u8, parameter: Option<u8>) -> Option<u8> {
        device.write(COMMAND, &[command]);
        if let Some(parameter) = parameter {
            device.write(DATA, &[parameter]);
        }
        (read(device, COMMAND) & OUTPUT_FULL != 0).then(|| read(device, DATA))
    }

    fn device() -> (I8042, Arc<Switch>) {
        let switch = Arc::new(Switch::default());
        (I8042::new(switch.clone()), switch)
    }

    #[test]
    fn an_idle_controller_is_ready_unlocked_and_empty() {
        let (mut device, _) = device();
        assert_eq!(read(&mut device, COMMAND), UNLOCKED);
        assert_eq!(read(&mut device, DATA), 0);
    }

    #[test]
    fn only_the_reset_command_resets() {
        for command in 0..=255 {
            let (mut device, switch) = device();
            device.write(COMMAND, &[command]);
            device.write(DATA, &[0xfe]);
            let expected: &[Request] = if command == 0xfe { &[Request::Reset] } else { &[] };
            assert_eq!(switch.taken(), expected, "{command:#x}");
        }
    }

    #[test]
    fn linux_finds_a_controller_without_an_auxiliary_port() {
        let (mut device, switch) = device();
        let initial = ask(&mut device, 0x20, None);
        assert_eq!(initial, ask(&mut device, 0x20, None));
        assert_eq!(ask(&mut device, 0x60, Some(0x10)), None);
        assert_eq!(ask(&mut device, 0x20, None), Some(0x10));
        assert_eq!(ask(&mut device, 0xaa, None), Some(0x55));
        device.write(COMMAND, &[0xd3]);
        device.write(DATA, &[0x5a]);
        // Linux takes a loop answer only with the auxiliary bit, 0x20.
        assert_eq!(read(&mut device, COMMAND), UNLOCKED | OUTPUT_FULL);
        assert_eq!(read(&mut device, DATA), 0x5a);
        assert_eq!(ask(&mut device, 0xa9, None), Some(1));
        assert_eq!(switch.taken(), []);
    }

    #[test]
    fn a_keyboard_command_gets_no_answer() {
        let (mut device, _) = device();
        device.write(DATA, &[0xf2, 0xff]);
        assert_eq!(read(&mut device, COMMAND), UNLOCKED);
    }

    #[test]
    fn ports_between_and_beyond_float() {
        let (mut device, _) = device();
        for offset in [1, 2, 3, 5, u64::MAX] {
            device.write(offset, &[0xfe]);
            assert_eq!(read(&mut device, offset), 0xff);
        }
    }

    #[test]
    fn a_storm_of_accesses_leaves_it_ready_for_commands() {
        let (mut device, _) = device();
        storm(&mut device, LEN, 3, |device| assert_eq!(read(device, COMMAND) & !OUTPUT_FULL, UNLOCKED));
        assert_eq!(ask(&mut device, 0xaa, None), Some(0x55));
    }
}
