//! The interval timer, an i8254: KVM's, made when the guest first reaches for it.
//!
//! Few guests do: Linux has better clocks under KVM and asks the PIT only to calibrate a TSC of unknown speed. Making
//! it takes KVM a thread and longer than the rest of a small machine together, so a machine starts with this stand-in
//! at its ports. The first access makes the real one, which takes the ports over, and is carried out on its state.

use std::sync::Arc;

use devices::bus::BusDevice;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_channel_state, kvm_pit_config};
use kvm_ioctls::VmFd;

use crate::vcpu::stop::{Exit, ExitRequest};

/// Which ports the stand-in is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Three channels' counts, and the control word.
    Timer,
    /// System control port B, which has the gate of channel 2.
    Gate,
}

/// A stand-in at some of the timer's ports.
pub struct Pit {
    vm: Arc<VmFd>,
    ports: Ports,
    exit: Arc<ExitRequest>,
}

impl Pit {
    /// At `ports` of `vm`. A timer that cannot be made stops the machine through `exit`.
    pub fn new(vm: Arc<VmFd>, ports: Ports, exit: Arc<ExitRequest>) -> Self {
        Self { vm, ports, exit }
    }

    fn carry_out(&self, offset: u64, value: u8) -> Result<(), kvm_ioctls::Error> {
        make(&self.vm)?;
        let mut state = self.vm.get_pit2()?;
        if apply(&mut state.channels, self.ports, offset, value) {
            self.vm.set_pit2(&state)?;
        }
        Ok(())
    }

    fn check(&self, result: Result<(), kvm_ioctls::Error>) {
        if let Err(error) = result {
            let error = anyhow::anyhow!(error).context("cannot create the interval timer");
            self.exit.request(Exit::Failed(error));
        }
    }
}

/// Makes the real one, unless another vCPU has just done so.
///
/// # Errors
/// The host's KVM refuses it.
pub fn make(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    match vm.create_pit2(config) {
        Err(error) if error.errno() == libc::EEXIST => Ok(()),
        made => made,
    }
}

/// Has channel 0 of the real one tick 18.2 times a second, as a PC's firmware does.
///
/// # Errors
/// The host's KVM refuses it.
pub fn start(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut state = vm.get_pit2()?;
    let channel = &mut state.channels[0];
    (channel.rw_mode, channel.read_state, channel.write_state) = (BOTH_BYTES, BOTH_BYTES, BOTH_BYTES);
    (channel.mode, channel.gate, channel.count) = (RATE_GENERATOR, 1, SLOWEST);
    vm.set_pit2(&state)
}

/// A count is written and read as its low byte, then its high byte.
const BOTH_BYTES: u8 = 3;
/// Mode 2.
const RATE_GENERATOR: u8 = 2;
/// What a count of 0 stands for.
const SLOWEST: u32 = 1 << 16;

impl BusDevice for Pit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.check(make(&self.vm));
        // No channel has been programmed, so none counts, and the gate is closed.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            self.check(self.carry_out(offset, *byte));
        }
    }
}

/// Does to a timer what a write does, as far as the first one can do anything: a control word sets up a channel, the
/// gate starts or stops channel 2, and a count without a control word before it is lost (i8254 data sheet, "Programming
/// the 82C54"). Returns whether anything changed.
fn apply(channels: &mut [kvm_pit_channel_state; 3], ports: Ports, offset: u64, value: u8) -> bool {
    if ports == Ports::Gate {
        channels[2].gate = value & 1;
        return true;
    }
    let access = value >> 4 & 3;
    let Some(channel) = channels.get_mut(usize::from(value >> 6)).filter(|_| offset == 3 && access != 0)
    else {
        return false;
    };
    (channel.rw_mode, channel.read_state, channel.write_state) = (access, access, access);
    let mode = value >> 1 & 7;
    channel.mode = if mode > 5 { mode - 4 } else { mode };
    channel.bcd = value & 1;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_word_sets_up_its_channel_and_no_other() {
        let mut channels = [kvm_pit_channel_state::default(); 3];
        // Channel 2, low byte then high byte, mode 0.
        assert!(apply(&mut channels, Ports::Timer, 3, 0xb0));
        assert_eq!((channels[2].rw_mode, channels[2].write_state, channels[2].mode), (3, 3, 0));
        assert_eq!(channels[0], kvm_pit_channel_state::default());
        // Mode 6 is mode 2.
        assert!(apply(&mut channels, Ports::Timer, 3, 0x1c));
        assert_eq!((channels[0].rw_mode, channels[0].mode), (1, 2));
    }

    #[test]
    fn latches_read_backs_and_stray_counts_change_nothing() {
        let mut channels = [kvm_pit_channel_state::default(); 3];
        for (offset, value) in [(3, 0x00), (3, 0xff), (0, 0x34), (2, 0xff)] {
            assert!(!apply(&mut channels, Ports::Timer, offset, value), "{offset} {value:#x}");
        }
        assert_eq!(channels, [kvm_pit_channel_state::default(); 3]);
    }
}
