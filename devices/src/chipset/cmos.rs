//! A PC's CMOS: the MC146818 real-time clock (Motorola MC146818A data sheet) and the RAM beside it, behind an
//! index and a data port.
//!
//! The time is the host's, in UTC. A guest that sets the clock gets its own time back, stored as the difference
//! to the host's. There is no interrupt, so status C never has a cause, and an update is never in
//! progress, so no driver has to wait for one to end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::device::{Device, Error, State, base64_bytes, check};

/// How many ports the device takes: index and data.
pub const LEN: u64 = 2;
/// The register of the century, where firmware puts it: the FADT's `CENTURY`.
pub const CENTURY: u8 = 0x32;

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;
const SIZE: usize = 128;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

/// Status A: an update is in progress.
const UIP: u8 = 0x80;
/// Status A after reset: a 32,768 Hz crystal, a periodic rate of 1,024 Hz.
const STATUS_A_RESET: u8 = 0x26;
/// Status B: the guest sets the clock, which shows what is written and does not advance.
const SET: u8 = 0x80;
/// Status B: binary, not BCD.
const BINARY: u8 = 0x04;
/// Status B: hours count to 24, not twice to 12.
const HOURS_24: u8 = 0x02;
/// Status D: the battery held.
const VALID: u8 = 0x80;
/// In the hours register, with a 12-hour clock.
const PM: u8 = 0x80;

const SECONDS_A_DAY: i64 = 24 * 60 * 60;
/// After status A says that no update is in progress, there is none for so long.
const QUIET: Duration = Duration::from_micros(244);

/// Where the time is: seconds, minutes, hours, weekday, day, month, year, century.
const TIME: [u8; 8] = [0x00, 0x02, HOURS, 0x06, 0x07, 0x08, 0x09, CENTURY];
const HOURS: u8 = 0x04;

/// The clock and its RAM: index port at offset 0, data port at offset 1.
pub struct Cmos {
    now: Box<dyn Fn() -> SystemTime + Send>,
    /// When status A was read last.
    asked: SystemTime,
    state: Registers,
}

/// The guest-visible state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    /// The guest's time less the host's, in seconds.
    ahead: i64,
    index: u8,
    /// What was written. The time registers count only while the clock is stopped.
    #[serde(with = "base64_bytes")]
    registers: [u8; SIZE],
}

impl Cmos {
    /// A clock that shows what `now` returns, as UTC. It comes up with BCD and 24 hours; all RAM is 0.
    pub fn new(now: Box<dyn Fn() -> SystemTime + Send>) -> Self {
        let mut registers = [0; SIZE];
        registers[usize::from(STATUS_A)] = STATUS_A_RESET;
        registers[usize::from(STATUS_B)] = HOURS_24;
        Self { now, asked: UNIX_EPOCH, state: Registers { ahead: 0, index: 0, registers } }
    }

    fn register(&self, index: u8) -> u8 {
        self.state.registers[usize::from(index)]
    }

    fn has(&self, status_b: u8) -> bool {
        self.register(STATUS_B) & status_b != 0
    }

    fn read_data(&mut self) -> u8 {
        match self.state.index {
            STATUS_A => {
                self.asked = (self.now)();
                self.register(STATUS_A) & !UIP
            }
            STATUS_C => 0,
            STATUS_D => VALID,
            index => match TIME.iter().position(|register| *register == index) {
                Some(field) if !self.has(SET) => self.encode(self.time())[field],
                _ => self.register(index),
            },
        }
    }

    fn write_data(&mut self, value: u8) {
        let stopped = self.has(SET);
        // A time register that is written while the clock runs is set as if it stopped for that.
        let touched = TIME.contains(&self.state.index) && !stopped;
        if touched {
            self.stop();
        }
        self.state.registers[usize::from(self.state.index)] = value;
        match (stopped, self.has(SET)) {
            (false, true) => self.stop(),
            (true, false) => self.start(),
            _ if touched => self.start(),
            _ => {}
        }
    }

    /// Puts the time into the registers.
    fn stop(&mut self) {
        for (register, value) in TIME.into_iter().zip(self.encode(self.time())) {
            self.state.registers[usize::from(register)] = value;
        }
    }

    /// Goes on from the time in the registers, or as before if what they hold is none.
    fn start(&mut self) {
        if let Some(time) = self.decode() {
            self.state.ahead = time.saturating_sub(self.host_time());
        }
    }

    /// Seconds since 1970 at the host. They do not advance while a guest that asked reads one register after the
    /// other, or it could see the seconds of one minute and the minutes of the next.
    fn host_time(&self) -> i64 {
        let now = (self.now)();
        let quiet = now.duration_since(self.asked).is_ok_and(|since| since < QUIET);
        let time = if quiet { self.asked } else { now };
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
        }
    }

    /// Seconds since 1970 in the guest.
    fn time(&self) -> i64 {
        self.host_time().saturating_add(self.state.ahead)
    }

    /// What the registers of [`TIME`] show at `time`, in the format that status B asks for.
    fn encode(&self, time: i64) -> [u8; 8] {
        let (days, second) = (time.div_euclid(SECONDS_A_DAY), time.rem_euclid(SECONDS_A_DAY));
        let (year, month, day) = date(days);
        let hour = second / 3600;
        let hours = if self.has(HOURS_24) {
            self.format(hour)
        } else {
            self.format((hour + 11) % 12 + 1) | if hour < 12 { 0 } else { PM }
        };
        // 1 January 1970 was a Thursday; the week starts with Sunday, 1.
        let weekday = (days + 4).rem_euclid(7) + 1;
        let rest = [second % 60, second / 60 % 60, 0, weekday, day, month, year % 100, year / 100 % 100];
        let mut registers = rest.map(|value| self.format(value));
        registers[2] = hours;
        registers
    }

    /// The time in the registers of [`TIME`], if it is one. The weekday follows from the date.
    fn decode(&self) -> Option<i64> {
        let hours = self.register(HOURS);
        let hour = match self.has(HOURS_24) {
            true => self.value(hours, 0, 23)?,
            false => self.value(hours & !PM, 1, 12)? % 12 + if hours & PM != 0 { 12 } else { 0 },
        };
        let minute = self.value(self.register(0x02), 0, 59)?;
        let second = self.value(self.register(0x00), 0, 59)?;
        let day = self.value(self.register(0x07), 1, 31)?;
        let month = self.value(self.register(0x08), 1, 12)?;
        let year = self.value(self.register(0x09), 0, 99)?;
        let year = self.value(self.register(CENTURY), 0, 99)? * 100 + year;
        let days = days(year, month, day);
        // There is no 30 February.
        let exists = date(days) == (year, month, day);
        exists.then_some(days * SECONDS_A_DAY + (hour * 60 + minute) * 60 + second)
    }

    /// A value of two decimal digits as a register shows it.
    fn format(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.has(BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    /// The value that a register shows, if it is in the format and in range.
    fn value(&self, shown: u8, from: i64, to: i64) -> Option<i64> {
        let (tens, ones) = (shown >> 4, shown & 0x0f);
        let value = match self.has(BINARY) {
            true => shown,
            false if ones < 10 => tens * 10 + ones,
            false => return None,
        };
        Some(i64::from(value)).filter(|value| (from..=to).contains(value))
    }
}

/// Days from 1 January 1970 to a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that start in March end with the leap day, and their months have 153 days in every five.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - EPOCH
}

/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;

/// Year (0 to 9999, then again from 0), month and day, so many days after 1 January 1970.
fn date(after: i64) -> (i64, i64, i64) {
    // The calendar repeats every 400 years, so it does every 10,000.
    let after = after.rem_euclid(10_000 / 400 * 146_097);
    // An estimate that is never late, and at most eight years early.
    let mut year = 1970 + after / 366;
    while days(year + 1, 1, 1) <= after {
        year += 1;
    }
    let month = (2..=12).rev().find(|month| days(year, *month, 1) <= after).unwrap_or(1);
    (year % 10_000, month, after - days(year, month, 1) + 1)
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = if offset == DATA_PORT { self.read_data() } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            match offset {
                // Bit 7 masks the NMI, which nothing here raises.
                INDEX_PORT => self.state.index = byte & (SIZE as u8 - 1),
                DATA_PORT => self.write_data(*byte),
                _ => {}
            }
        }
    }
}

impl Device for Cmos {
    fn name(&self) -> &'static str {
        "cmos"
    }

    /// A clock that runs is as far from the host's wherever it is loaded; one that is stopped shows what it did.
    fn save(&mut self) -> Result<State, Error> {
        Ok(State::of(&self.state))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        let state: Registers = state.take()?;
        check(usize::from(state.index) < SIZE, "index")?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
