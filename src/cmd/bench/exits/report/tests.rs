//! Reports as they are made, kept and compared.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cmd::bench::exits::counters::Meanwhile;
use crate::cmd::bench::exits::page::page;
use crate::cmd::bench::exits::payload::PAYLOADS;
use crate::cmd::bench::exits::sample::Leg;
use crate::cmd::bench::facts::Facts;
use crate::cmd::bench::tell;

const SCALE: Scale =
    Scale { ticks: 2.0, unit: "ns", overhead: Overhead { min: 90, p50: 100, batch: 20.0 }, quantum: 1 };

fn payload(id: &str) -> &'static Payload {
    PAYLOADS.iter().find(|payload| payload.id == id).unwrap()
}

fn empty() -> Report {
    Report {
        head: Head::new(Report::SCHEMA, Facts { cpu: "A <b>CPU".to_owned(), ..Facts::default() }),
        clock: Clock { quantum_ns: 0.5, pair_overhead_cycles: SCALE.overhead, offset_zero: true },
        run: Run { cpus: [0, 1], rt: false, blocks: 3, seed: SEED, unit: "ns".to_owned() },
        results: Vec::new(),
        derived: Vec::new(),
        skipped: vec![Skipped { id: "hypercall".to_owned(), reason: "no <answer>".to_owned() }],
        peers: Vec::new(),
    }
}

/// Three blocks whose times are around `raw` and `vmm` ticks.
fn rows(raw: u32, vmm: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    for block in 0..3 {
        let leg = |path, ticks: u32| Leg {
            path,
            stage: "total",
            times: (0..1000).map(|index| ticks + block + index % 7).collect(),
            batch: None,
            meanwhile: Meanwhile { counters: [("exits".to_owned(), 1000)].into(), ..Meanwhile::default() },
        };
        let batch =
            Leg { times: Vec::new(), batch: Some((u64::from(raw) * 100, 100)), ..leg(Path::Raw, raw) };
        Row::add_block(&mut rows, vec![leg(Path::Raw, raw), leg(Path::Vmm, vmm), batch]);
    }
    rows
}

fn report(raw: u32, vmm: u32) -> Report {
    let mut report = empty();
    report.add(payload("pio.in.4"), &rows(raw, vmm), &SCALE);
    report
}

#[test]
fn times_are_without_the_clocks_readings_and_in_nanoseconds() {
    let report = report(2100, 2300);
    let raw = &report.results[0];
    assert_eq!((raw.n, raw.min), (3000, 1000.0));
    assert!((1000.0..1005.0).contains(&raw.p50), "{}", raw.p50);
    assert!(raw.ci95_p50[0] <= raw.p50 && raw.p50 <= raw.ci95_p50[1]);
    assert_eq!((raw.batch_mean, raw.exits_per_op), (Some(1040.0), Some(1.0)));
    assert!(raw.flags.is_empty(), "{:?}", raw.flags);
    let added = report.added("pio.in.4").unwrap();
    assert!((99.0..=101.0).contains(&added.value) && added.ci95[0] <= 100.0 && added.ci95[1] >= 100.0);
}

#[test]
fn a_batch_that_disagrees_and_exits_that_are_not_there_are_flagged() {
    let mut rows = rows(2100, 2300);
    rows[0].batch.0 *= 2;
    for block in &mut rows[0].blocks {
        block.meanwhile.counters.insert("exits".to_owned(), 0);
    }
    rows[1].blocks[0].meanwhile.nivcsw = 5;
    let mut report = empty();
    report.add(payload("pio.in.4"), &rows, &SCALE);
    assert_eq!(report.results[0].flags, ["batch +109%", "exit-less"]);
    assert_eq!(report.results[1].flags, ["disturbed 1/3"]);
}

#[test]
fn a_report_that_is_read_is_the_one_that_was_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let written = report(2100, 2300);
    tell::write(&written, file.as_file()).unwrap();
    let read: Report = tell::read(file.path()).unwrap();
    assert_eq!(format!("{read:?}"), format!("{written:?}"));
    assert_eq!(read.changes(&written).len(), 2);
}

#[test]
fn the_histogram_in_a_report_holds_every_time() {
    let report = report(2100, 2300);
    let bytes = STANDARD.decode(&report.results[0].hist_v2).unwrap();
    let mut deserializer = hdrhistogram::serialization::Deserializer::new();
    let histogram: hdrhistogram::Histogram<u64> = deserializer.deserialize(&mut bytes.as_slice()).unwrap();
    assert_eq!((histogram.len(), histogram.min() / 100), (3000, 21));
}

#[test]
fn files_of_another_version_or_of_something_else_are_refused_in_one_line() {
    for (text, word) in [
        (r#"{"schema":"exits/2","results":[]}"#, "exits/2"),
        (r#"{"schema":"exits/1"}"#, "damaged"),
        (r#"{"schema":"exits/1","results":[{"p50":1e308}]}"#, "no clock"),
        (r#"{"schema":"exits/1","results":[{"curve":[[1e-300,1]]}]}"#, "no clock"),
        ("{}", "no report"),
        ("not JSON", "no report"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = format!("{:#}", tell::read::<Report>(file.path()).unwrap_err());
        assert!(error.contains(word) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn only_what_is_slower_beyond_doubt_is_a_regression() {
    let old = report(20_000, 20_300);
    for (raw, vmm, regressions) in [
        (20_000, 20_300, vec![]),
        // Within three in a hundred.
        (20_400, 20_700, vec![]),
        (20_000, 23_000, vec!["pio.in.4 vmm total"]),
        // Faster is none.
        (10_000, 20_300, vec![]),
    ] {
        let new = report(raw, vmm);
        let changes = new.changes(&old);
        let found: Vec<_> =
            changes.iter().filter(|it| it.is_regression()).map(|it| it.name.as_str()).collect();
        assert_eq!(found, regressions, "{raw} {vmm}");
    }
    let mut text = Vec::new();
    let slower = report(20_000, 23_000);
    compare::write(&old.head.when, &slower.changes(&old), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("REGRESSION pio.in.4 vmm total: 10.1 us before, 11.5 us now"), "{text}");
}

#[test]
fn the_table_has_a_line_for_each_path_and_what_lies_between() {
    let mut text = Vec::new();
    table::write(&report(2100, 2300), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(&lines[1][..4], ["pio.in.4", "raw", "1.00", "us"]);
    assert_eq!(&lines[2][..2], ["vmm", "1.10"]);
    assert_eq!(&lines[3][..2], ["kite", "adds"]);
    assert!(text.contains("hypercall         skipped: no <answer>"), "{text}");
}

#[test]
fn the_page_needs_no_network_and_what_the_host_says_is_text() {
    let mut report = report(2100, 2300);
    for stage in ["kick_to_thread", "thread_to_irqfd", "irqfd_to_isr"] {
        let mut rows = rows(2100, 2300);
        rows.truncate(1);
        rows[0].stage = stage;
        report.add(payload("ioev.rt.spin"), &rows, &SCALE);
    }
    let peer = |name: &str, p50| Peer {
        name: name.to_owned(),
        id: "pio.in.4".to_owned(),
        n: 1,
        p50,
        p90: p50,
        unit: "ns".to_owned(),
    };
    report.peers = vec![peer("kite", 1000.0), peer("QEMU", 1500.0)];
    let page = page(&report).unwrap();
    // The bars, a round trip, the peers; and of each payload with totals a curve and its blocks.
    assert_eq!(page.matches("<svg").count(), 3 + 2);
    assert!(
        page.contains("A &lt;b&gt;CPU") && page.contains("no &lt;answer&gt;") && !page.contains("<b>CPU")
    );
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http") && !outside.contains("<script") && !outside.contains("url("));
}

#[test]
fn a_report_of_nothing_is_a_table_and_a_page_too() {
    let empty = empty();
    table::write(&empty, &mut Vec::new()).unwrap();
    assert!(page(&empty).unwrap().contains("Not measured"));
}
