//! What stands out, in words: who cost most, by what a guest does there.

use std::collections::BTreeMap;
use std::time::Duration;

use super::report::{Report, Row};
use crate::vcpu::counters::Space;

/// At most so many lines.
const LINES: usize = 8;
/// What has less than one in so many of the exits, and of the time in kite, does not stand out.
const LEAST: u64 = 100;

/// What guests look for at ports where kite has nothing (Linux `drivers/`; RBIL, "PORTS.LST").
const EMPTY_PORTS: [(u64, u64, &str); 12] = [
    (0x2e, 0x2f, "Super I/O probe"),
    (0x40, 0x43, "interval timer"),
    (0x4e, 0x4f, "Super I/O probe"),
    (0x80, 0x80, "port 0x80 delays"),
    (0x92, 0x92, "A20 gate"),
    (0xed, 0xed, "port 0xed delays"),
    (0x170, 0x177, "IDE probe"),
    (0x1f0, 0x1f7, "IDE probe"),
    (0x2e8, 0x2ff, "probe of other serial ports"),
    (0x3b0, 0x3df, "VGA probe"),
    (0x3e8, 0x3ef, "probe of other serial ports"),
    (0xcf8, 0xcff, "PCI probe"),
];

/// What guests do with the devices that kite has.
const DEVICES: [(&str, &str); 6] = [
    ("i8042", "i8042 probe"),
    ("cmos", "real-time clock"),
    ("serial", "serial console"),
    ("pit", "interval timer"),
    ("power", "power and reset"),
    ("pvpanic", "pvpanic"),
];

#[derive(Default)]
struct Group {
    exits: u64,
    ring: u64,
    ns: u64,
}

/// The lines, the most expensive first.
pub(super) fn of(report: &Report) -> Vec<String> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in &report.rows {
        let group = groups.entry(subject(row)).or_default();
        group.exits += row.cost.count;
        group.ns += row.cost.total_ns;
    }
    for row in &report.ring {
        let group = groups.entry(subject(row)).or_default();
        group.ring += row.cost.count;
        group.ns += row.cost.total_ns;
    }
    let sum = |of: fn(&Group) -> u64| groups.values().map(of).sum::<u64>();
    let (exits, ns) = (sum(|group| group.exits), sum(|group| group.ns));
    let stands_out = |group: &Group| group.exits * LEAST >= exits.max(1) || group.ns * LEAST >= ns.max(1);
    let mut groups: Vec<_> = groups.iter().filter(|(_, group)| stands_out(group)).collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.ns));
    groups.truncate(LINES);
    let mut lines: Vec<_> = groups.into_iter().map(|(subject, group)| line(subject, group)).collect();
    lines.extend(halts(report));
    lines
}

fn line(subject: &str, group: &Group) -> String {
    let mut line = format!("{subject}: {}", counted(group.exits, "exit"));
    if group.ring > 0 {
        line.push_str(&format!(" and {} without one", counted(group.ring, "write")));
    }
    line.push_str(&format!(", {}", time(group.ns)));
    line
}

/// How often the guest had nothing to do, which is no cost but explains exits.
fn halts(report: &Report) -> Option<String> {
    let (halts, exits) = (report.kvm("halt_exits")?, report.kvm("exits")?);
    (halts > 0 && halts * 10 >= exits)
        .then(|| format!("idle: {} of {} are halts", grouped(halts), counted(exits, "exit of KVM's")))
}

/// What the guest does there.
fn subject(row: &Row) -> String {
    let Some(access) = row.access else { return "more addresses than are counted apart".to_owned() };
    if let Some(device) = &row.device {
        let known = DEVICES.iter().find(|(name, _)| name == device);
        return known.map_or_else(|| device.clone(), |(_, subject)| (*subject).to_owned());
    }
    let address = access.address;
    match access.space {
        Space::Port => {
            let known = EMPTY_PORTS.iter().find(|(first, last, _)| (*first..=*last).contains(&address));
            known.map_or_else(
                || format!("port {address:#x}, where nothing is"),
                |(.., subject)| (*subject).to_owned(),
            )
        }
        Space::Memory => format!("memory at {:#x}, where nothing is", address & !0xfff),
    }
}

/// A number and its noun.
pub(super) fn counted(count: u64, noun: &str) -> String {
    let plural = match noun.split_once(' ') {
        None => format!("{noun}s"),
        Some((noun, rest)) => format!("{noun}s {rest}"),
    };
    format!("{} {}", grouped(count), if count == 1 { noun } else { &plural })
}

/// A number with its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time with three digits or so.
pub(super) fn time(ns: u64) -> String {
    let time = Duration::from_nanos(ns);
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (time.as_secs_f64() * 1e6, "us"),
        1_000_000..1_000_000_000 => (time.as_secs_f64() * 1e3, "ms"),
        _ => (time.as_secs_f64(), "s"),
    };
    match value {
        ..9.995 => format!("{value:.2} {unit}"),
        ..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Cost, Vcpu};
    use super::*;
    use crate::vcpu::counters::{Access, Kind};

    fn row(kind: Kind, address: u64, device: Option<&str>, count: u64, total_ns: u64) -> Row {
        let access = Access {
            space: kind.space().unwrap(),
            address,
            write: matches!(kind, Kind::PortWrite | Kind::MemoryWrite),
            width: 1,
        };
        let cost = Cost { count, total_ns, ..Cost::default() };
        Row { kind, access: Some(access), device: device.map(str::to_owned), cost }
    }

    #[test]
    fn the_most_expensive_comes_first_and_small_change_is_left_out() {
        let rows = vec![
            row(Kind::PortWrite, 0x3f8, Some("serial"), 20_000, 90_000_000),
            row(Kind::PortRead, 0x64, Some("i8042"), 300, 40_000_000),
            row(Kind::PortWrite, 0x64, Some("i8042"), 12, 1_000_000),
            row(Kind::PortRead, 0xcfc, None, 700, 2_000_000),
            row(Kind::PortRead, 0x71, Some("cmos"), 4, 1_000),
            row(Kind::MemoryRead, 0xe000_0123, None, 1_000, 3_000_000),
        ];
        let ring = vec![row(Kind::PortWrite, 0x3f8, Some("serial"), 1, 5_000_000)];
        let words = of(&Report { rows, ring, ..Report::default() });
        let expected = [
            "serial console: 20,000 exits and 1 write without one, 95.0 ms",
            "i8042 probe: 312 exits, 41.0 ms",
            "memory at 0xe0000000, where nothing is: 1,000 exits, 3.00 ms",
            "PCI probe: 700 exits, 2.00 ms",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn an_idle_guest_is_told_of() {
        let kvm = vec![("exits".to_owned(), 1_000), ("halt_exits".to_owned(), 200)];
        let report = Report { vcpus: vec![Vcpu { kvm, ..Vcpu::default() }], ..Report::default() };
        assert_eq!(of(&report), ["idle: 200 of 1,000 exits of KVM's are halts"]);
    }

    #[test]
    fn a_guest_that_did_nothing_gets_no_words() {
        assert_eq!(of(&Report::default()), [""; 0]);
    }

    #[test]
    fn times_and_numbers_are_short() {
        assert_eq!(
            [0, 999, 1_000, 12_345, 999_999].map(time),
            ["0 ns", "999 ns", "1.00 us", "12.3 us", "1000 us"]
        );
        assert_eq!([41_000_000, 2_340_000_000].map(time), ["41.0 ms", "2.34 s"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
