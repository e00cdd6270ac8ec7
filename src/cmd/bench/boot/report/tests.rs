//! Reports of boots as they are made, kept and compared.

use super::*;
use crate::cmd::bench::facts::Facts;
use crate::cmd::bench::tell;

fn guest(is_linux: bool) -> Guest {
    Guest::for_tests("a <b>kernel", is_linux)
}

/// Boots whose stages are at so many milliseconds, each one a bit longer than the one before.
fn boots(ms: [Option<u32>; 4]) -> Vec<Boot> {
    let boot = |more: u32| Boot { us: ms.map(|ms| ms.map(|ms| ms * 1000 + more)), ..Boot::default() };
    (0..5).map(|index| boot(index * 10)).collect()
}

fn report(guest: &Guest, kite: Vec<Boot>, qemu: Option<Vec<Boot>>) -> Report {
    let kernel = Kernel { id: guest.id.clone(), version: None, cmdline: "console=<tty>".to_owned() };
    let mut report = Report {
        head: Head::new(Report::SCHEMA, Facts::default()),
        run: Run { runs: 5, qemu: qemu.is_some().then(|| "QEMU 1".to_owned()), kernels: vec![kernel] },
        results: Vec::new(),
        derived: Vec::new(),
        skipped: Vec::new(),
    };
    let series = |monitor, boots| Series { guest, monitor, boots, is_dead: false };
    let kite = series(Monitor::Kite, kite);
    let all: Vec<_> = [kite].into_iter().chain(qemu.map(|boots| series(Monitor::Qemu, boots))).collect();
    report.add(&all);
    report
}

fn table(report: &Report) -> String {
    let mut text = Vec::new();
    report.table(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

const KITE: [Option<u32>; 4] = [Some(3), Some(10), Some(300), Some(310)];
const QEMU: [Option<u32>; 4] = [None, Some(90), Some(450), Some(480)];

#[test]
fn a_row_is_what_the_boots_took_and_each_boot_is_a_block() {
    let report = report(&guest(true), boots(KITE), None);
    let [first, .., off] = &report.results[..] else { panic!("{}", report.results.len()) };
    assert_eq!((first.stage.as_str(), first.n, first.min, first.p50), ("first_instruction", 5, 3e6, 3.02e6));
    assert_eq!((first.max, first.mean), (3.04e6, 3.02e6));
    assert!(first.ci95_p50[0] <= first.p50 && first.p50 <= first.ci95_p50[1], "{:?}", first.ci95_p50);
    assert_eq!(off.blocks.iter().map(|block| block.p50).collect::<Vec<_>>()[..2], [310e6, 310.01e6]);
    assert!(report.skipped.is_empty() && report.derived.is_empty());
}

#[test]
fn what_only_one_of_two_tells_is_no_row_of_the_other_and_has_a_reason() {
    let report = report(&guest(true), boots(KITE), Some(boots(QEMU)));
    let skipped: Vec<_> = report.skipped.iter().map(|it| (it.path, it.stage.as_deref())).collect();
    assert_eq!(skipped, [(Some(Monitor::Qemu), Some("first_instruction"))]);
    let stages: Vec<_> = report.derived.iter().map(|it| (it.stage.as_str(), it.value)).collect();
    assert_eq!(stages, [("first_output", 80e6), ("user_space", 150e6), ("power_off", 170e6)]);
    let text = table(&report);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[2][..5], ["first", "instruction", "kite", "3.02", "ms"]);
    assert!(lines.iter().any(|line| line.starts_with(&["more", "170", "ms"])), "{text}");
    assert!(text.contains("qemu, first instruction: skipped: QEMU does not tell"), "{text}");
}

#[test]
fn a_stage_that_is_not_reached_is_left_out_with_the_reason() {
    let mut dying = boots([Some(3), Some(10), None, None]);
    for (guest, word) in [(guest(true), "status 255"), (guest(false), "no Linux")] {
        dying[1].trouble = Some("it ended with status 255: kite: the guest crashed".to_owned());
        let report = report(&guest, dying.clone(), None);
        assert_eq!((report.results.len(), report.skipped.len()), (2, 2));
        assert!(report.skipped[0].reason.contains(word), "{}", report.skipped[0].reason);
        assert!(report.skipped[1].reason.contains("status 255"));
    }
    let mut once = boots(KITE);
    once[2].us[3] = None;
    assert_eq!(report(&guest(true), once, None).results[3].flags, ["missed 1/5"]);
}

#[test]
fn a_report_that_is_read_is_the_one_that_was_written_and_no_other_benchmarks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let written = report(&guest(true), boots(KITE), Some(boots(QEMU)));
    tell::write(&written, file.as_file()).unwrap();
    let read: Report = tell::read(file.path()).unwrap();
    assert_eq!(format!("{read:?}"), format!("{written:?}"));
    let error = tell::read::<crate::cmd::bench::exits::Report>(file.path()).unwrap_err().to_string();
    assert!(error.contains("boot/1") && error.contains("exits/1"), "{error}");
}

#[test]
fn only_a_boot_that_has_become_slower_is_a_regression() {
    let old = report(&guest(true), boots(KITE), None);
    let slower = [KITE[0], KITE[1], Some(400), Some(411)];
    let new = report(&guest(true), boots(slower), None);
    let found = |new: &Report, old: &Report| -> Vec<String> {
        new.changes(old).into_iter().filter(Change::is_regression).map(|it| it.name).collect()
    };
    assert_eq!(found(&new, &old), ["a <b>kernel kite user_space", "a <b>kernel kite power_off"]);
    assert!(found(&old, &new).is_empty() && found(&old, &old).is_empty());
}

#[test]
fn the_page_needs_no_network_and_what_a_kernel_is_called_is_text() {
    let page = report(&guest(true), boots(KITE), Some(boots(QEMU))).page().unwrap();
    // The bars, and of each stage a curve and its boots.
    assert_eq!(page.matches("<svg").count(), 1 + 2 * 4);
    assert!(page.contains("a &lt;b&gt;kernel") && !page.contains("<b>kernel") && !page.contains("<tty>"));
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http") && !outside.contains("<script") && !outside.contains("url("));
}
