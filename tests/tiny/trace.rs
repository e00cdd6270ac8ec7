//! The timeline of a boot, as a viewer of trace events finds it.

use boot::testing::Code;
use serde_json::Value;

use crate::process::Kite;
use crate::support::kvm;

/// Prints a string that ends with 0 and is at label 8 or later in the code.
macro_rules! print {
    ($text:literal) => {
        concat!(
            "lea rsi, [rip + 8f]\n mov dx, 0x3f8\n jmp 7f\n 8: .asciz \"",
            $text,
            "\"\n 6: out dx, al\n 7: lodsb\n test al, al\n jnz 6b"
        )
    };
}

guest!(
    LIKE_LINUX,
    "cld
     mov dx, 0x64
     mov ecx, 100
     2: in al, dx
     loop 2b",
    print!("[    0.000000] Linux version 9.9.9-tiny\\r\\n"),
    "mov dx, 0x71
     mov ecx, 50
     2: in al, dx
     loop 2b",
    print!("[    0.1] Run /init as init process\\r\\n"),
    power_off!()
);

guest!(NO_LINUX, say!("'o'"), power_off!());

/// Runs a guest to its end; returns its events.
fn events(guest: &'static Code, options: &[&str], expected: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    // It looks like a Linux that PVM cannot run.
    let options = [&["--force", "--trace", file.to_str().unwrap()], options].concat();
    Kite::run(guest, &options).end().assert(0, expected, "");
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["traceEvents"].as_array().unwrap().clone()
}

fn named<'a>(events: &'a [Value], name: &str) -> &'a Value {
    let found: Vec<_> = events.iter().filter(|event| event["name"] == name && event["ph"] != "M").collect();
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found[0]
}

fn start(events: &[Value], name: &str) -> u64 {
    named(events, name)["ts"].as_u64().unwrap()
}

const PRINTED: &str = "[    0.000000] Linux version 9.9.9-tiny\r\n[    0.1] Run /init as init process\r\n";

#[test]
fn kites_phases_and_the_guests_follow_each_other() {
    needs!(kvm());
    let events = events(&LIKE_LINUX, &[], PRINTED);
    let order = [
        "parse options",
        "open the kernel",
        "open the devices",
        "ask for CPUID",
        "open KVM",
        "memory",
        "virtual machine",
        "devices",
        "vCPUs",
        "registers",
        "start the threads",
        "first KVM_RUN",
        "first output",
        "start_kernel",
        "init",
        "exit",
    ];
    let starts = order.map(|name| start(&events, name));
    assert!(starts.is_sorted(), "{starts:?}");
    for name in ["load the kernel", "ACPI", "part from the host"] {
        assert!(start(&events, name) >= start(&events, "memory"), "{name}");
    }
    assert_eq!(start(&events, "first instruction"), start(&events, "first KVM_RUN"));
}

#[test]
fn a_phase_of_the_guests_has_its_own_exits_and_no_others() {
    needs!(kvm());
    let events = events(&LIKE_LINUX, &[], PRINTED);
    let phases = ["to the kernel's first line", "kernel", "user space"];
    let exits = phases.map(|name| named(&events, name)["args"]["exits"].as_u64().unwrap());
    // Each begins when kite reads the line, so that what is near a border may be on either side.
    assert_eq!(exits.iter().sum::<u64>(), 100 + 50 + PRINTED.len() as u64 + 1, "{exits:?}");
    let probe = |name: &str| {
        let args = named(&events, name)["args"].as_object().unwrap();
        let found = args.iter().find(|(what, _)| what.ends_with(": 0x64 read 1 (i8042)"));
        found.map(|(_, value)| value.as_str().unwrap().to_owned())
    };
    assert!(probe(phases[0]).unwrap().starts_with("100 exits, "));
    assert_eq!(phases[1..].iter().find_map(|name| probe(name)), None);
}

#[test]
fn slices_of_one_thread_do_not_overlap() {
    needs!(kvm());
    let events = events(&LIKE_LINUX, &["--cpus", "2"], PRINTED);
    let of = |event: &Value, field: &str| event[field].as_u64().unwrap();
    let slices = events.iter().filter(|event| event["ph"] == "X");
    let slices = slices.map(|it| (of(it, "pid"), of(it, "tid"), of(it, "ts"), of(it, "ts") + of(it, "dur")));
    let mut slices: Vec<_> = slices.collect();
    slices.sort_unstable();
    assert!(slices.len() > 15, "{slices:?}");
    for pair in slices.windows(2) {
        let [(process, thread, _, end), (other_process, other, start, _)] = pair else { continue };
        assert!((process, thread) != (other_process, other) || end <= start, "{pair:?}");
    }
}

#[test]
fn a_guest_that_is_no_linux_has_its_start_and_its_end() {
    needs!(kvm());
    let events = events(&NO_LINUX, &["--cpus", "2", "--no-acpi"], "o");
    assert_eq!(named(&events, "guest")["args"]["exits"], 2);
    assert!(start(&events, "exit") >= start(&events, "MP table"));
    assert!(!events.iter().any(|event| event["name"] == "start_kernel" || event["name"] == "init"));
}

#[test]
fn every_thread_that_has_events_has_a_name() {
    needs!(kvm());
    let events = events(&LIKE_LINUX, &[], PRINTED);
    let place = |event: &Value| (event["pid"].as_u64(), event["tid"].as_u64());
    let names: Vec<_> = events.iter().filter(|event| event["name"] == "thread_name").map(place).collect();
    for event in events.iter().filter(|event| event["ph"] == "X" || event["ph"] == "i") {
        assert!(names.contains(&place(event)), "{event}");
    }
}
