//! A 16550A UART (National Semiconductor PC16550D data sheet, §8) with flow control towards the host.
//!
//! There is no baud rate: a byte written is sent at once, unless the host does not keep up. Then the
//! transmitter stays busy, as on a slow line, and a driver that waits for it loses nothing. Input waits at
//! the host until the driver can take it: start-up code clears FIFOs and reads RBR blindly.
//!
//! Where it differs from the chip, it is the more patient: input never overruns, turning the FIFOs on or off
//! preserves their bytes (Linux enables the receiver's interrupt first and the FIFOs after), and the character
//! timeout takes no time.

use std::collections::VecDeque;
use std::mem;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::device::{Device, Error, State, check};
use crate::irq::Line;

/// How many bytes of address space the registers take.
pub const LEN: u64 = 8;
/// How many output bytes wait for the host at most.
pub const OUTPUT_LIMIT: usize = 64 << 10;

/// The depth of either FIFO, in bytes. A driver that sees the transmitter empty writes this many.
const FIFO: usize = 16;
/// So many reads of LSR in a row, all with an idle transmitter, are a driver polling for input. Linux's
/// start-up makes two, its console output one.
const POLLS: u8 = 4;

const LSR: u64 = 5;

mod ier {
    pub const RDI: u8 = 0x01;
    pub const THRI: u8 = 0x02;
    pub const RLSI: u8 = 0x04;
    pub const MSI: u8 = 0x08;
    pub const MASK: u8 = 0x0f;
}

mod iir {
    pub const MODEM_STATUS: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const THR_EMPTY: u8 = 0x02;
    pub const DATA: u8 = 0x04;
    pub const LINE_STATUS: u8 = 0x06;
    pub const CHARACTER_TIMEOUT: u8 = 0x0c;
    pub const FIFOS: u8 = 0xc0;
}

mod fcr {
    pub const ENABLE: u8 = 0x01;
    pub const CLEAR_RECEIVER: u8 = 0x02;
}

const LCR_DLAB: u8 = 0x80;

mod mcr {
    pub const DTR: u8 = 0x01;
    pub const RTS: u8 = 0x02;
    pub const OUT1: u8 = 0x04;
    pub const OUT2: u8 = 0x08;
    pub const LOOP: u8 = 0x10;
    pub const MASK: u8 = 0x1f;
}

mod lsr {
    pub const DATA_READY: u8 = 0x01;
    pub const OVERRUN: u8 = 0x02;
    pub const THR_EMPTY: u8 = 0x20;
    pub const TRANSMITTER_EMPTY: u8 = 0x40;
}

mod msr {
    /// Which lines changed.
    pub const CHANGES: u8 = 0x0f;
    pub const RI_ENDED: u8 = 0x04;
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
}

/// The host's side of the line. All are called with the device's lock held: they wake a thread, no more.
pub trait Host: Send {
    /// There is output again: [`Serial::take_output`] has something.
    fn output_ready(&self);
    /// The guest has room for the input that [`Serial::receive`] refused.
    fn input_wanted(&self);
    /// The driver has waited, after its last byte, for the transmitter to run empty, and then gone on to its interrupts:
    /// it comes back to the UART after a byte of output. Called once.
    fn output_awaited(&self) {}
}

/// How far the driver has come in waiting for its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Awaited {
    /// The last access was something else.
    No,
    /// It was a write to THR.
    Sent,
    /// And then a read of LSR.
    Waited,
    /// The host knows of it.
    Reported,
}

/// The guest-visible state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    /// MSR's lower half: which modem lines changed since it was read.
    modem_changes: u8,
    /// THR became empty, and neither IIR was read nor THR written since.
    thr_emptied: bool,
    overrun: bool,
    received: VecDeque<u8>,
    /// How many of the last accesses were reads of LSR with an idle transmitter.
    lsr_reads: u8,
    /// The driver polls for input. It does until it writes IER or FCR or reads RBR without looking, that is
    /// with no byte there: all of that is start-up.
    polled: bool,
    awaited: Awaited,
}

impl Registers {
    /// Those after reset.
    fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            // 9600 baud, as firmware leaves it: a divisor of 0 is one that Linux's earlycon divides by.
            divisor: [12, 0],
            modem_changes: 0,
            thr_emptied: false,
            overrun: false,
            received: VecDeque::with_capacity(FIFO),
            lsr_reads: 0,
            polled: false,
            awaited: Awaited::No,
        }
    }

    fn check(&self) -> Result<(), Error> {
        check(self.ier & !ier::MASK == 0, "IER")?;
        check(self.fcr == 0 || self.fcr & fcr::ENABLE != 0, "FCR")?;
        check(self.mcr & !mcr::MASK == 0, "MCR")?;
        check(self.modem_changes & !msr::CHANGES == 0, "MSR")?;
        check(self.received.len() <= FIFO, "number of received bytes")
    }
}

/// The UART. Every byte of a wider access is one access to the same register, since that is what a string
/// instruction does and KVM does not distinguish them.
pub struct Serial {
    line: Box<dyn Line>,
    host: Box<dyn Host>,
    regs: Registers,
    output: Vec<u8>,
    dropped: u64,
    /// The host has input that was refused.
    refused: bool,
}

impl Serial {
    /// A UART after reset, which interrupts through `line`.
    pub fn new(line: Box<dyn Line>, host: Box<dyn Host>) -> Self {
        let (output, dropped, refused) = (Vec::new(), 0, false);
        Self { line, host, regs: Registers::new(), output, dropped, refused }
    }

    /// Appends all waiting output to `into` and lets the guest go on writing. An empty `into` is swapped, not
    /// copied: hand the same one in each time.
    pub fn take_output(&mut self, into: &mut Vec<u8>) {
        let pending = self.pending();
        let was_idle = self.transmitter_idle();
        if into.is_empty() {
            mem::swap(into, &mut self.output);
        } else {
            into.append(&mut self.output);
        }
        if !was_idle {
            self.regs.thr_emptied = true;
        }
        self.signal_changes(pending);
    }

    /// Offers input from the host and returns how many of `bytes` the guest takes now. If it is not all of
    /// them, [`Host::input_wanted`] follows once when the guest has read what it has and can take more.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = if self.takes_input() { self.depth().saturating_sub(self.regs.received.len()) } else { 0 };
        let taken = room.min(bytes.len());
        self.regs.received.extend(&bytes[..taken]);
        self.refused = taken < bytes.len();
        if taken > 0 && self.regs.ier & ier::RDI != 0 {
            self.line.pulse();
        }
        taken
    }

    /// How many bytes the guest wrote although the transmitter was busy. They are lost.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn fifos(&self) -> bool {
        self.regs.fcr & fcr::ENABLE != 0
    }

    /// How many bytes the receiver holds.
    fn depth(&self) -> usize {
        if self.fifos() { FIFO } else { 1 }
    }

    fn takes_input(&self) -> bool {
        self.regs.mcr & mcr::LOOP == 0 && (self.regs.ier & ier::RDI != 0 || self.regs.polled)
    }

    /// Whether the driver may fill the FIFO: a whole one has to fit.
    fn transmitter_idle(&self) -> bool {
        self.output.len() <= OUTPUT_LIMIT - FIFO
    }

    /// The interrupt causes that are there and enabled, by their bits in IER.
    fn pending(&self) -> u8 {
        let causes = [
            (!self.regs.received.is_empty(), ier::RDI),
            (self.regs.thr_emptied, ier::THRI),
            (self.regs.overrun, ier::RLSI),
            (self.regs.modem_changes != 0, ier::MSI),
        ];
        causes.into_iter().filter(|(there, _)| *there).fold(0, |all, (_, cause)| all | cause) & self.regs.ier
    }

    /// Looks for a driver that waits for its output: THR, LSR, IER.
    fn watch_output(&mut self, offset: u64, write: bool) {
        self.regs.awaited = match (self.regs.awaited, offset, write) {
            (Awaited::Reported, ..) => return,
            (_, 0, true) if self.regs.lcr & LCR_DLAB == 0 => Awaited::Sent,
            (Awaited::Sent, LSR, false) => Awaited::Waited,
            (Awaited::Waited, 1, true) => {
                self.host.output_awaited();
                Awaited::Reported
            }
            _ => Awaited::No,
        };
    }

    /// Tells the line and the host what an access has changed, given what was pending before it.
    fn signal_changes(&mut self, pending: u8) {
        if self.pending() & !pending != 0 {
            self.line.pulse();
        }
        // Not before the FIFO is empty: the guest reads until it is, and a wake-up for each byte is dear.
        if self.refused && self.regs.received.is_empty() && self.takes_input() {
            self.refused = false;
            self.host.input_wanted();
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            0 | 1 if self.regs.lcr & LCR_DLAB != 0 => self.regs.divisor[offset as usize],
            0 => self.read_rbr(),
            1 => self.regs.ier,
            2 => self.read_iir(),
            3 => self.regs.lcr,
            4 => self.regs.mcr,
            LSR => self.read_lsr(),
            6 => self.modem_lines() | mem::take(&mut self.regs.modem_changes),
            7 => self.regs.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            0 | 1 if self.regs.lcr & LCR_DLAB != 0 => self.regs.divisor[offset as usize] = value,
            0 => self.write_thr(value),
            1 => self.write_ier(value),
            2 => self.write_fcr(value),
            3 => self.regs.lcr = value,
            4 => self.write_mcr(value),
            7 => self.regs.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
    }

    fn read_rbr(&mut self) -> u8 {
        self.regs.polled &= !self.regs.received.is_empty();
        self.regs.received.pop_front().unwrap_or(0)
    }

    fn read_iir(&mut self) -> u8 {
        let trigger = [1, 4, 8, 14][usize::from(self.regs.fcr >> 6)];
        let pending = self.pending();
        let source = if pending & ier::RLSI != 0 {
            iir::LINE_STATUS
        } else if pending & ier::RDI != 0 {
            if self.fifos() && self.regs.received.len() < trigger {
                iir::CHARACTER_TIMEOUT
            } else {
                iir::DATA
            }
        } else if pending & ier::THRI != 0 {
            self.regs.thr_emptied = false;
            iir::THR_EMPTY
        } else if pending & ier::MSI != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        };
        source | if self.fifos() { iir::FIFOS } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut value = if mem::take(&mut self.regs.overrun) { lsr::OVERRUN } else { 0 };
        if !self.regs.received.is_empty() {
            value |= lsr::DATA_READY;
        }
        // With a busy transmitter the driver may be waiting for that, not for input.
        self.regs.lsr_reads = if self.transmitter_idle() { self.regs.lsr_reads.saturating_add(1) } else { 0 };
        self.regs.polled |= self.regs.lsr_reads >= POLLS;
        value | if self.transmitter_idle() { lsr::THR_EMPTY | lsr::TRANSMITTER_EMPTY } else { 0 }
    }

    /// MSR's upper half: a terminal that is always there, or MCR's outputs in loopback.
    fn modem_lines(&self) -> u8 {
        if self.regs.mcr & mcr::LOOP == 0 {
            return msr::DCD | msr::DSR | msr::CTS;
        }
        let wires = [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)];
        wires
            .into_iter()
            .filter(|(output, _)| self.regs.mcr & output != 0)
            .fold(0, |all, (_, input)| all | input)
    }

    fn write_thr(&mut self, value: u8) {
        if self.regs.mcr & mcr::LOOP != 0 {
            self.loop_back(value);
        } else if self.output.len() == OUTPUT_LIMIT {
            self.dropped = self.dropped.saturating_add(1);
        } else {
            self.output.push(value);
            if self.output.len() == 1 {
                self.host.output_ready();
            }
        }
        self.regs.thr_emptied = self.transmitter_idle();
    }

    fn loop_back(&mut self, value: u8) {
        if self.regs.received.len() >= self.depth() {
            self.regs.overrun = true;
            if self.fifos() {
                return;
            }
            self.regs.received.clear();
        }
        self.regs.received.push_back(value);
    }

    fn write_ier(&mut self, value: u8) {
        let enabled = value & !self.regs.ier;
        self.regs.ier = value & ier::MASK;
        if enabled & ier::THRI != 0 {
            self.regs.thr_emptied = self.transmitter_idle();
        }
        self.regs.polled = false;
    }

    fn write_fcr(&mut self, value: u8) {
        // Without the enable bit no other bit is taken.
        self.regs.fcr = if value & fcr::ENABLE != 0 { value } else { 0 };
        if self.regs.fcr & fcr::CLEAR_RECEIVER != 0 {
            self.regs.received.clear();
        }
        self.regs.polled = false;
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.regs.mcr = value & mcr::MASK;
        let after = self.modem_lines();
        self.regs.modem_changes |= ((before ^ after) & !msr::RI) >> 4;
        if before & !after & msr::RI != 0 {
            self.regs.modem_changes |= msr::RI_ENDED;
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            let pending = self.pending();
            self.watch_output(offset, false);
            if offset != LSR {
                self.regs.lsr_reads = 0;
            }
            *byte = self.read_register(offset);
            self.signal_changes(pending);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            let pending = self.pending();
            self.watch_output(offset, true);
            self.regs.lsr_reads = 0;
            self.write_register(offset, *byte);
            self.signal_changes(pending);
        }
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        "serial"
    }

    /// Output that the host has not taken is not in it: the host that it was written to has it.
    fn save(&mut self) -> Result<State, Error> {
        // Without that output the transmitter is empty.
        let thr_emptied = self.regs.thr_emptied || !self.transmitter_idle();
        Ok(State::of(&Registers { thr_emptied, ..self.regs.clone() }))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        let mut regs: Registers = state.take()?;
        regs.check()?;
        // What vCPUs do with it allocates nothing.
        regs.received.reserve(FIFO);
        self.regs = regs;
        if self.regs.awaited == Awaited::Reported {
            self.host.output_awaited();
        }
        Ok(())
    }

    fn resume(&mut self) {
        self.signal_changes(0);
    }
}

#[cfg(test)]
mod tests;
