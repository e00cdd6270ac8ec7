//! The clock against known dates, every format, guests that set it, and Linux's way of reading it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::*;
use crate::testing::{Random, storm};

/// 2024-02-29 23:59:58, a Thursday.
const LEAP_DAY: u64 = 1_709_251_198;
/// 9999-12-31 23:59:59.
const LAST: u64 = 253_402_300_799;

/// A host clock in microseconds since 1970 that the test moves.
#[derive(Clone, Default)]
struct Host(Arc<AtomicU64>);

impl Host {
    fn set(&self, seconds: u64) {
        self.0.store(seconds * 1_000_000, Relaxed);
    }
    fn advance(&self, micros: u64) {
        self.0.fetch_add(micros, Relaxed);
    }
}

fn clock(seconds: u64) -> (Cmos, Host) {
    let host = Host::default();
    host.set(seconds);
    let read = host.clone();
    (Cmos::new(Box::new(move || UNIX_EPOCH + Duration::from_micros(read.0.load(Relaxed)))), host)
}

fn get(cmos: &mut Cmos, index: u8) -> u8 {
    let mut data = [0];
    cmos.write(INDEX_PORT, &[index]);
    cmos.read(DATA_PORT, &mut data);
    data[0]
}

fn set(cmos: &mut Cmos, index: u8, value: u8) {
    cmos.write(INDEX_PORT, &[index]);
    cmos.write(DATA_PORT, &[value]);
}

/// Century, year, month, day, weekday, hours, minutes, seconds.
fn time(cmos: &mut Cmos) -> [u8; 8] {
    [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|index| get(cmos, index))
}

#[test]
fn the_clock_tells_known_dates() {
    for (seconds, expected) in [
        (0, [0x19, 0x70, 0x01, 0x01, 5, 0x00, 0x00, 0x00]),
        (951_782_400, [0x20, 0x00, 0x02, 0x29, 3, 0x00, 0x00, 0x00]),
        (LEAP_DAY, [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]),
        (LEAP_DAY + 2, [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]),
        (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2, 0x00, 0x00, 0x00]),
        (LAST, [0x99, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]),
    ] {
        assert_eq!(time(&mut clock(seconds).0), expected, "{seconds}");
    }
}

#[test]
fn every_date_comes_back_and_the_next_day_is_the_next() {
    let (first, last) = (days(0, 1, 1), days(9999, 12, 31));
    assert_eq!((last - first + 1, days(1970, 1, 1)), (3_652_425, 0));
    let mut before = (0, 0, 0);
    for day in (first..days(401, 1, 1)).chain(days(1600, 1, 1)..days(2101, 1, 1)).chain(last - 99_999..=last)
    {
        let (year, month, dom) = date(day);
        assert_eq!(days(year, month, dom), day);
        assert!((year, month, dom) > before && (1..=12).contains(&month) && (1..=31).contains(&dom));
        before = (year, month, dom);
    }
    assert_eq!(date(last + 1), (0, 1, 1));
}

#[test]
fn the_formats_of_status_b_are_honoured() {
    let (mut cmos, host) = clock(LEAP_DAY);
    for (status_b, expected) in [(0x02, 0x23), (0x06, 23), (0x00, 0x91), (0x04, 0x8b)] {
        set(&mut cmos, STATUS_B, status_b);
        assert_eq!((get(&mut cmos, STATUS_B), get(&mut cmos, HOURS)), (status_b, expected));
    }
    assert_eq!(time(&mut cmos), [20, 24, 2, 29, 5, 0x8b, 59, 58]);
    for (hour, expected) in [(0, 12), (1, 1), (11, 11), (12, 0x8c), (13, 0x81)] {
        host.set(hour * 3600);
        assert_eq!(get(&mut cmos, HOURS), expected);
    }
}

#[test]
fn status_registers_never_make_a_driver_wait() {
    let (mut cmos, _) = clock(LEAP_DAY);
    assert_eq!([0x0a, 0x0b, 0x0c, 0x0d].map(|index| get(&mut cmos, index)), [0x26, 0x02, 0, 0x80]);
    for value in 0..=255 {
        for index in [STATUS_A, STATUS_C, STATUS_D] {
            set(&mut cmos, index, value);
        }
        assert_eq!([0x0a, 0x0c, 0x0d].map(|index| get(&mut cmos, index)), [value & 0x7f, 0, 0x80]);
    }
}

#[test]
fn the_time_stands_still_for_a_driver_that_asked_first() {
    let (mut cmos, host) = clock(LEAP_DAY + 1);
    host.advance(999_900);
    assert_eq!(get(&mut cmos, STATUS_A) & UIP, 0);
    host.advance(200);
    assert_eq!(time(&mut cmos)[5..], [0x23, 0x59, 0x59]);
    host.advance(44);
    assert_eq!(time(&mut cmos)[3..], [0x01, 6, 0x00, 0x00, 0x00]);
    get(&mut cmos, STATUS_A);
    host.set(LEAP_DAY);
    assert_eq!(time(&mut cmos)[7], 0x58, "the host's clock was set back");
}

#[test]
fn a_time_that_is_set_stands_and_then_goes_on() {
    for (status_b, fields) in [
        (0x02, [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]),
        (0x04, [19, 99, 12, 31, 6, 0x8b, 59, 59]),
        (0x02, [0x00, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]),
    ] {
        let (mut cmos, host) = clock(LEAP_DAY);
        set(&mut cmos, STATUS_B, status_b | SET);
        for (index, value) in [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].into_iter().zip(fields) {
            set(&mut cmos, index, value);
        }
        host.advance(5_000_000);
        assert_eq!(time(&mut cmos), fields);
        set(&mut cmos, STATUS_B, status_b);
        assert_eq!(time(&mut cmos), fields);
        host.advance(2_000_000);
        assert_ne!(time(&mut cmos), fields);
        assert_eq!(get(&mut cmos, 0), (fields[7] + 2) % if fields[7] == 0 { 60 } else { fields[7] + 1 });
    }
}

#[test]
fn one_register_is_set_while_the_clock_runs() {
    let (mut cmos, host) = clock(LEAP_DAY);
    set(&mut cmos, 0x09, 0x28);
    assert_eq!(time(&mut cmos), [0x20, 0x28, 0x02, 0x29, 3, 0x23, 0x59, 0x58]);
    host.advance(2_000_000);
    assert_eq!(time(&mut cmos), [0x20, 0x28, 0x03, 0x01, 4, 0x00, 0x00, 0x00]);
}

#[test]
fn a_time_that_does_not_exist_is_not_taken() {
    let (mut cmos, host) = clock(LEAP_DAY);
    for (index, value) in [(0x07, 0x30), (0x08, 0x13), (0x08, 0x00), (0x04, 0x24), (0x02, 0x60), (0x00, 0x5a)]
    {
        set(&mut cmos, index, value);
        set(&mut cmos, STATUS_B, 0x82);
        set(&mut cmos, index, value);
        assert_eq!(get(&mut cmos, index), value);
        host.advance(1_000_000);
        set(&mut cmos, STATUS_B, 0x02);
        host.set(LEAP_DAY);
        assert_eq!(time(&mut cmos), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    }
}

#[test]
fn ram_holds_what_is_written_and_starts_at_zero() {
    let (mut cmos, _) = clock(LEAP_DAY);
    let ram = || (0x0e..=0x7f).filter(|index| *index != CENTURY).chain([0x01, 0x03, 0x05]);
    for index in ram() {
        assert_eq!(get(&mut cmos, index), 0);
        set(&mut cmos, index, !index);
    }
    for index in ram() {
        assert_eq!(get(&mut cmos, index), !index);
        assert_eq!(get(&mut cmos, index | 0x80), !index, "bit 7 masks the NMI");
    }
}

#[test]
fn the_index_and_other_ports_float() {
    let (mut cmos, _) = clock(LEAP_DAY);
    for offset in [INDEX_PORT, 2, u64::MAX] {
        let mut data = [0; 4];
        cmos.read(offset, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}

#[test]
fn clocks_out_of_range_do_no_harm() {
    let far = Duration::from_secs(1 << 60);
    for now in [UNIX_EPOCH.checked_add(far), UNIX_EPOCH.checked_sub(far)].into_iter().flatten() {
        let mut cmos = Cmos::new(Box::new(move || now));
        assert!(time(&mut cmos).iter().all(|value| value & 0x0f < 10));
        set(&mut cmos, 0x09, 0x42);
        assert_eq!(get(&mut cmos, 0x09), 0x42);
    }
    let before = UNIX_EPOCH - Duration::from_secs(1);
    let mut cmos = Cmos::new(Box::new(move || before));
    assert_eq!(time(&mut cmos)[..4], [0x19, 0x69, 0x12, 0x31]);
}

#[test]
fn a_storm_of_accesses_leaves_a_clock_that_can_be_set() {
    let (mut cmos, host) = clock(LEAP_DAY);
    let mut random = Random::new(5);
    storm(&mut cmos, LEN, 6, |cmos| {
        host.0.store(random.below(LAST * 1_000_000), Relaxed);
        if cmos.state.index == STATUS_A {
            assert_eq!(get(cmos, STATUS_A) & UIP, 0);
        }
    });
    set(&mut cmos, STATUS_B, 0x82);
    for (index, value) in [(0x32, 0x20), (0x09, 0x30), (0x08, 1), (0x07, 2), (0x04, 3), (0x02, 4), (0x00, 5)]
    {
        set(&mut cmos, index, value);
    }
    set(&mut cmos, STATUS_B, 0x02);
    assert_eq!(time(&mut cmos), [0x20, 0x30, 0x01, 0x02, 4, 0x03, 0x04, 0x05]);
}
