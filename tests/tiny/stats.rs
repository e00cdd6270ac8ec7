//! What is counted of a guest's exits, by kite and by KVM.

use std::path::Path;

use kite::observe::kvm_stats::KvmStats;
use kite::observe::stats::Cost;
use kite::vm::memory::GuestRam;
use kite::vm::{self, Vm};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::Kite;
use crate::rig::record;
use crate::support::guest::printed_in_a_hurry;
use crate::support::{guarded, kvm, until};

#[test]
fn kvms_own_counters_of_a_vcpu_have_its_exits() {
    needs!(kvm());
    let kvm = vm::open_kvm().unwrap();
    let vm = Vm::new(&kvm, std::sync::Arc::new(GuestRam::new(64 << 20).unwrap()), 1).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let stats = KvmStats::of_vcpu(&vcpu).expect("Linux has them since 5.14");
    let exits = |name: &str| stats.read().into_iter().find(|(it, _)| it == name).map(|(_, value)| value);
    assert_eq!([exits("exits"), exits("io_exits"), exits("mmio_exits")], [Some(0); 3]);
    // At the reset vector, where nothing is mapped, the first fetch is an exit of some kind.
    let _ = vcpu.run();
    assert!(exits("exits") > Some(0));
}

guest!(
    COUNTED,
    "mov dx, 0xc00
     mov ecx, 1000
     2: in al, dx
     loop 2b
     mov dx, 0x1234
     mov ecx, 300
     3: out dx, ax
     loop 3b
     mov ebx, 0x10000000
     mov ecx, 200
     4: mov [rbx + 8], rax
     loop 4b
     mov eax, [rbx + 4]",
    power_off!()
);

#[test]
fn every_access_is_counted_once_at_its_address() {
    needs!(kvm());
    guarded(|| {
        let (_, _, rig) = record(&COUNTED);
        let report = rig.stats.report();
        let mut found: Vec<_> = report
            .rows
            .iter()
            .map(|row| {
                let access = row.access.unwrap();
                (access.address, access.write, access.width, row.device.as_deref(), row.cost.count)
            })
            .collect();
        found.sort_unstable();
        let expected = [
            (0x600, true, 1, Some("power"), 1),
            (0xc00, false, 1, Some("recorder"), 1000),
            (0x1234, true, 2, None, 300),
            (0x1000_0004, false, 4, Some("recorder"), 1),
            (0x1000_0008, true, 8, Some("recorder"), 200),
        ];
        assert_eq!(found, expected);
        // A signal may have come, too, for the vCPU to stop.
        assert_eq!(report.ports.exits + report.memory.exits, 1502);
        for cost in report.rows.iter().map(|row| row.cost) {
            let Cost { p50_ns, p90_ns, p99_ns, max_ns, .. } = cost;
            assert!(0 < p50_ns && p50_ns <= p90_ns && p90_ns <= p99_ns && p99_ns <= max_ns, "{cost:?}");
            assert!(max_ns <= cost.total_ns && cost.total_ns <= max_ns * cost.count, "{cost:?}");
        }
    });
}

#[test]
fn kites_totals_are_those_that_kvm_has_counted() {
    needs!(kvm());
    guarded(|| {
        let (_, _, rig) = record(&COUNTED);
        let report = rig.stats.report();
        assert_eq!((report.memory.exits, report.memory.kvm), (201, Some(201)));
        assert_eq!(report.ports.exits, 1301);
        // Where KVM emulates every instruction, an access to a port is no exit of the processor's for it.
        match report.ports.kvm {
            Some(0) if Path::new("/sys/module/kvm_pvm").exists() => {
                eprintln!("not compared: PVM does not count exits for ports");
            }
            counted => assert_eq!(counted, Some(1301)),
        }
        assert!(report.kvm("exits") >= Some(1502));
    });
}

/// What kite has written to a file as JSON.
fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// How often the guest did this, as the rows tell.
fn count(rows: &Value, address: u64, access: &str) -> u64 {
    let rows = rows.as_array().unwrap().iter();
    let rows = rows.filter(|row| row["address"] == address && row["access"] == access);
    rows.map(|row| row["count"].as_u64().unwrap()).sum()
}

guest!(HURRIED, print_in_a_hurry!(), power_off!());

#[test]
fn writes_that_wait_in_the_ring_are_counted_beside_exits() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stats.json");
    let option = format!("--stats={}", file.display());
    Kite::run(&HURRIED, &[&option]).end().assert(0, printed_in_a_hurry(), "");
    let json = json(&file);
    assert_eq!(
        (&json["schema"], &json["version"], &json["finished"]),
        (&"kite-stats".into(), &1.into(), &true.into())
    );
    let written = [&json["accesses"], &json["ring"]].map(|rows| count(rows, 0x3f8, "write"));
    assert_eq!(written[0] + written[1], 1501, "{written:?}");
    assert!(written[1] > 0, "nothing came through the ring");
    assert_eq!(json["totals"]["port"]["ring"], written[1]);
    let serial = |row: &Value| row["address"] == 0x3f8 && row["device"] == "serial" && row["bytes"] == 1;
    assert!(json["accesses"].as_array().unwrap().iter().any(serial), "{json}");
    assert_eq!(json["vcpus"][0]["exits"], json["exits"]);
    assert_eq!(json["totals"]["memory"]["kvm_beyond"], 0);
}

#[test]
fn the_table_comes_after_all_that_the_guest_has_printed() {
    needs!(kvm());
    let end = Kite::run(&HURRIED, &["--stats", "--cpus", "2"]).end();
    assert_eq!((end.status.code(), end.stdout), (Some(0), printed_in_a_hurry()));
    for words in [
        "exits to kite in ",
        "0x600 write 1          power",
        "0     port write",
        "memory: ",
        "serial console: ",
    ] {
        assert!(end.stderr.contains(words), "{words:?} is not in\n{}", end.stderr);
    }
    assert_eq!(end.stderr.matches("exits to kite in ").count(), 1);
}

guest!(CRASHING, say!("'c'"), "lidt [2f]\n ud2\n .align 8\n 2: .quad 0, 0");

#[test]
fn a_guest_that_crashes_is_told_of_all_the_same() {
    needs!(kvm());
    let end = Kite::run(&CRASHING, &["--stats"]).end();
    assert_eq!(end.status.code(), Some(255), "{}", end.stderr);
    let table = end.stderr.find("exits to kite in ").expect("the table");
    assert!(end.stderr.find("the guest crashed").is_some_and(|crash| crash > table), "{}", end.stderr);
    assert!(end.stderr.contains("0     end "), "{}", end.stderr);
}

guest!(
    ASKED,
    say!("'e'"),
    "xor ebx, ebx
     mov dx, 0x1234
     2: in al, dx
     mov ebx, 0x30000000
     mov eax, [rbx]
     mov dx, 0x3fd
     in al, dx
     test al, 1
     mov dx, 0x1234
     jz 2b",
    power_off!()
);

#[test]
fn sigusr1_asks_and_the_guest_goes_on() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stats.json");
    let mut kite = Kite::typed_to(&ASKED, &[&format!("--stats={}", file.display())]);
    kite.expect(b"e");
    let mut last = 0;
    for _ in 0..5 {
        kite.signal(Signal::SIGUSR1);
        until("an answer", || file.exists());
        let json = json(&file);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(json["finished"], false);
        let exits = json["exits"].as_u64().unwrap();
        assert!(exits >= last, "{exits} after {last}");
        last = exits;
    }
    kite.send(b"!");
    kite.end().assert(0, "e", "");
    assert!(json(&file)["exits"].as_u64() > Some(last));
    assert_eq!(json(&file)["totals"]["memory"]["kvm_beyond"], 0);
}

#[test]
fn without_the_option_sigusr1_ends_kite() {
    needs!(kvm());
    let mut kite = Kite::run(&ASKED, &[]);
    kite.expect(b"e");
    kite.signal(Signal::SIGUSR1);
    kite.end().assert_killed_by(Signal::SIGUSR1);
}

#[test]
fn a_reader_never_finds_half_a_file() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stats.json");
    let option = format!("--stats={}", file.display());
    let mut kite = Kite::typed_to(&ASKED, &[&option, "--stats-interval", "2ms"]);
    until("the first answer", || file.exists());
    let mut exits: Vec<u64> = Vec::new();
    // On a busy machine many looks fit between two answers.
    until("another answer", || {
        exits.extend((0..300).map(|_| json(&file)["exits"].as_u64().unwrap()));
        exits.first() != exits.last()
    });
    assert!(exits.is_sorted());
    kite.send(b"!");
    kite.end().assert(0, "e", "");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a file is left behind");
}

guest!(
    EVERYWHERE,
    "mov ebx, 0x30000000
     mov ecx, 20000
     xor edx, edx
     2: mov eax, [rbx]
     add ebx, 0x40
     in al, dx
     inc edx
     loop 2b",
    power_off!()
);

#[test]
fn a_guest_that_goes_everywhere_is_counted_in_full_and_in_bounded_room() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let (file, trace) = (folder.path().join("stats.json"), folder.path().join("trace.json"));
    let options = [format!("--stats={}", file.display()), format!("--trace={}", trace.display())];
    Kite::run(&EVERYWHERE, &options.each_ref().map(String::as_str)).end().assert(0, "", "");
    let stats = json(&file);
    let rows = stats["accesses"].as_array().unwrap();
    assert!(rows.len() < 600, "{}", rows.len());
    assert_eq!(stats["totals"]["memory"]["exits"], 20_000);
    assert_eq!(stats["totals"]["memory"]["kvm_beyond"], 0);
    let others = rows.iter().filter(|row| row["address"].is_null()).map(|row| row["count"].as_u64().unwrap());
    assert!(others.sum::<u64>() > 30_000);
    assert!(std::fs::metadata(&trace).unwrap().len() < 2 << 20);
}

// Waits for a key: r resets, another powers off.
guest!(
    TOLD,
    say!("'t'"),
    "mov dx, 0x3fd
     2: in al, dx
     test al, 1
     jz 2b
     mov dx, 0x3f8
     in al, dx
     cmp al, 'r'
     jne 3f
     mov al, 0xfe
     out 0x64, al
     4: hlt
     jmp 4b
     3:",
    power_off!()
);

#[test]
fn every_machine_of_a_guest_that_restarts_has_its_own_table() {
    needs!(kvm());
    let mut kite = Kite::typed_to(&TOLD, &["--stats", "--on-reboot", "restart"]);
    kite.expect(b"t");
    kite.send(b"r");
    kite.expect(b"tt");
    kite.send(b"o");
    let end = kite.end();
    assert_eq!((end.status.code(), end.stdout.as_slice()), (Some(0), &b"tt"[..]), "{}", end.stderr);
    let tables: Vec<_> = end.stderr.split("exits to kite in ").skip(1).collect();
    let resets = tables.iter().map(|table| table.contains("0x64 write 1           i8042"));
    assert_eq!(resets.collect::<Vec<_>>(), [true, false], "{}", end.stderr);
}

#[test]
fn a_kite_that_is_told_to_end_tells_what_it_has_seen() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let (file, trace) = (folder.path().join("stats.json"), folder.path().join("trace.json"));
    let options = [format!("--stats={}", file.display()), format!("--trace={}", trace.display())];
    let mut kite = Kite::typed_to(&TOLD, &options.each_ref().map(String::as_str));
    kite.expect(b"t");
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
    assert_eq!(json(&file)["finished"], true);
    assert_eq!(count(&json(&file)["accesses"], 0x3f8, "write"), 1);
    let events = json(&trace)["traceEvents"].as_array().unwrap().clone();
    assert!(events.iter().any(|event| event["name"] == "exit"));
}

#[test]
fn a_file_that_can_no_longer_be_written_is_told_of_in_the_end() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let option = format!("--stats={}/stats.json", folder.path().display());
    let mut kite = Kite::typed_to(&TOLD, &[&option]);
    kite.expect(b"t");
    folder.close().unwrap();
    kite.send(b"o");
    let end = kite.end();
    assert_eq!((end.status.code(), end.stdout.as_slice()), (Some(125), &b"t"[..]));
    assert!(
        end.stderr.starts_with("kite: cannot write ") && end.stderr.lines().count() == 1,
        "{}",
        end.stderr
    );
}
