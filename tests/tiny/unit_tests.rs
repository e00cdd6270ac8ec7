//! `resources/kvm-unit-tests`, on a folder of small images that pass, fail, skip, hang and crash.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use boot::testing::{BASE, Code, multiboot_at, multiboot_elf};
use tempfile::TempDir;

use crate::support::kvm;

const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/kvm-unit-tests");

/// Prints the text at `$text` and ends with `$status`.
macro_rules! tell_and_end {
    ($status:literal, $text:literal) => {
        concat!(
            "mov esp, 0x210000
             cld
             call 2f
             .ascii \"",
            $text,
            "\"
             .byte 0
             2: pop esi
             mov dx, 0x3f8
             3: lodsb
             test al, al
             jz 4f
             out dx, al
             jmp 3b
             4: mov eax, ",
            $status,
            "
             mov dx, 0xf4
             out dx, eax
             5: hlt
             jmp 5b"
        )
    };
}

guest!(UNIT_PASS, ".code32", tell_and_end!(0, "PASS: one\\r\\nSUMMARY: 3 tests\\r\\n"));
guest!(UNIT_FAIL, ".code32", tell_and_end!(1, "FAIL: one\\nSUMMARY: 3 tests, 1 unexpected failures\\n"));
guest!(UNIT_SKIP, ".code32", tell_and_end!(38, "SUMMARY: 1 tests, 1 skipped\\n"));
guest!(UNIT_HANG, ".code32\n 2: jmp 2b");
guest!(UNIT_HALT, ".code32\n cli\n 2: hlt\n jmp 2b");
guest!(UNIT_CRASH, ".code32\n mov word ptr [0x203000], 0\n lidt [0x203000]\n ud2");
guest!(UNIT_OFF, ".code32", power_off!());

// Passes with three CPUs, 72 MiB of memory, the command line "arguments.flat a 'b  c'" and a module "env".
guest!(
    UNIT_ARGUMENTS,
    ".code32
     mov esp, 0x210000
     cmp dword ptr [ebx + 8], 71 * 1024",
    check!(1, "je"),
    "mov esi, [ebx + 16]
     call 2f
     .ascii \"arguments.flat a 'b  c'\"
     .byte 0
     2: pop edi
     mov ecx, 24
     cld
     repe cmpsb",
    check!(2, "je"),
    read_fw_cfg!(5),
    "cmp al, 3",
    check!(3, "je"),
    "mov esi, [ebx + 24]
     mov esi, [esi + 8]
     cmp dword ptr [esi], 0x00766e65",
    check!(4, "je"),
    passed!(),
);

// Passes with the command line "clock.flat 10 N", where N is ten digits.
guest!(
    UNIT_CLOCK,
    ".code32
     mov esp, 0x210000
     mov esi, [ebx + 16]
     call 2f
     .ascii \"clock.flat 10 \"
     2: pop edi
     mov ecx, 14
     cld
     repe cmpsb",
    check!(1, "je"),
    "mov ecx, 10
     3: lodsb
     cmp al, '0'
     jb 4f
     cmp al, '9'
     ja 4f
     loop 3b
     lodsb
     test al, al
     4: mov ecx, ecx",
    check!(2, "jz"),
    passed!(),
);

fn write(folder: &Path, name: &str, content: &[u8]) {
    std::fs::write(folder.join(name), content).unwrap();
}

/// A folder with these tests in it.
fn folder(tests: &[(&str, &'static Code)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, guest) in tests {
        write(folder.path(), &format!("{name}.flat"), &multiboot_elf(guest.code()));
    }
    folder
}

/// Runs the wrapper; `FOLDER` in its arguments is the folder.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(WRAPPER);
    command.env("KITE", crate::support::KITE).env_remove("ARCH");
    let folder = folder.to_str().unwrap();
    command.args(arguments.iter().map(|it| if *it == "FOLDER" { folder } else { it }));
    command.output().unwrap()
}

/// The rows, and nothing that stands below them.
fn rows(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{text}");
    text.lines().filter(|line| !line.starts_with("    ")).map(str::to_owned).collect()
}

#[test]
fn each_test_of_a_folder_is_a_row_that_tells_how_it_ended() {
    needs!(kvm());
    let tests = [
        ("a_pass", &UNIT_PASS),
        ("b_fail", &UNIT_FAIL),
        ("c_skip", &UNIT_SKIP),
        ("d_hang", &UNIT_HANG),
        ("e_crash", &UNIT_CRASH),
        ("f_off", &UNIT_OFF),
        ("g_halt", &UNIT_HALT),
    ];
    let folder = folder(&tests);
    write(folder.path(), "h_broken.flat", b"no image\n");
    write(folder.path(), "unittests.cfg", b"[d_hang]\nfile = d_hang.flat\ntimeout = 1\n");
    let logs = folder.path().join("logs");
    let output = run(folder.path(), &["-o", logs.to_str().unwrap(), "FOLDER"]);
    let rows = rows(&output);
    assert_eq!(
        rows[..8],
        [
            "FAIL d_hang (timeout after 1)",
            "PASS a_pass (3 tests)",
            "FAIL b_fail (3 tests, 1 unexpected failures; status 3)",
            "SKIP c_skip (1 tests, 1 skipped)",
            "FAIL e_crash (the guest crashed: triple fault on vCPU 0)",
            "FAIL f_off (it went off without a status)",
            "FAIL g_halt (the guest crashed: every vCPU has halted with interrupts off)",
            rows[7].as_str(),
        ]
    );
    assert!(rows[7].starts_with("FAIL h_broken (cannot boot ") && rows[7].contains("looks like text"));
    assert_eq!(rows[8..], ["1 passed, 6 failed, 1 skipped"]);
    assert_eq!(output.status.code(), Some(1));
    let log = std::fs::read_to_string(logs.join("b_fail.log")).unwrap();
    assert!(log.contains("FAIL: one"), "{log}");
}

#[test]
fn tests_that_pass_or_skip_end_with_0_and_a_failure_shows_its_last_lines() {
    needs!(kvm());
    let folder = folder(&[("pass", &UNIT_PASS), ("skip", &UNIT_SKIP), ("fail", &UNIT_FAIL)]);
    let output = run(folder.path(), &["FOLDER", "pass", "skip"]);
    assert_eq!(
        rows(&output),
        ["PASS pass (3 tests)", "SKIP skip (1 tests, 1 skipped)", "1 passed, 0 failed, 1 skipped"]
    );
    assert_eq!(output.status.code(), Some(0));
    let output = run(folder.path(), &["FOLDER", "fail", "nobody"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\n    FAIL: one\n"), "{text}");
    assert!(text.contains(&format!("FAIL nobody (there is no such test in {})", folder.path().display())));
    assert_eq!(output.status.code(), Some(1));
}

const CONFIGURATION: &str = r#"
# As kvm-unit-tests writes it.
[arguments]
file = arguments.flat
smp = $((MAX_SMP > 1000 ? 4 : 3))
extra_params = -cpu max,+x2apic -m 72 -initrd env -append "a 'b  c'" -device pci-testdev -machine q35,accel=kvm
arch = x86_64
groups = quick other

[lines]
file = arguments.flat
smp = 3
test_args = "a 'b  c'"
qemu_params = """-m 72M
    -initrd env"""

[named]
file = pass.flat
groups = nodefault

[other_processor]
file = pass.flat
arch = i386

[other_kvm]
file = pass.flat
accel = tcg

[other_host]
file = pass.flat
check = /proc/sys/kernel/ostype=Minix

[no_such_host]
file = pass.flat
check = /proc/nowhere=1

[other_device]
file = pass.flat
extra_params = -device intel-iommu,intremap=on

[other_irqchip]
file = pass.flat
extra_params = -machine q35,kernel-irqchip=split

[other_option]
file = pass.flat
extra_params = -display none

[many]
file = pass.flat
smp = $(reboot)

[missing]
file = missing.flat

[clock]
file = clock.flat
extra_params = --append "10 `date +%s`"

[clock_too]
file = clock.flat
test_args = "10 $(date +%s)"

[evil]
file = pass.flat
extra_params = -append "`touch evil` 1"

[evil_too]
file = pass.flat
test_args = "$(touch evil)"

[last]
file = pass.flat
groups = quick"#;

#[test]
fn a_configuration_is_followed_where_kite_has_what_it_asks_for() {
    needs!(kvm());
    let folder = folder(&[
        ("arguments", &UNIT_ARGUMENTS),
        ("pass", &UNIT_PASS),
        ("clock", &UNIT_CLOCK),
        ("z_alone", &UNIT_PASS),
    ]);
    write(folder.path(), "unittests.cfg", CONFIGURATION.as_bytes());
    write(folder.path(), "env", b"A=1\n");
    let mut expected = String::new();
    for row in [
        "PASS arguments",
        "PASS lines",
        "SKIP named (runs only if it is named)",
        "SKIP other_processor (i386 only)",
        "SKIP other_kvm (tcg only)",
        "SKIP other_host (/proc/sys/kernel/ostype is not Minix)",
        "SKIP no_such_host (there is no /proc/nowhere)",
        "SKIP other_device (needs -device intel-iommu,intremap=on)",
        "SKIP other_irqchip (needs -machine q35,kernel-irqchip=split)",
        "SKIP other_option (needs -display none)",
        "SKIP many (kite cannot tell how many CPUs '$(reboot)' are)",
        "SKIP missing (missing.flat is not built)",
        "PASS clock",
        "PASS clock_too",
        "SKIP evil (kite evaluates nothing but date +%s in '-append \"`touch evil` 1\"')",
        "SKIP evil_too (kite evaluates nothing but date +%s in '$(touch evil)')",
        "PASS last (3 tests)",
        "PASS z_alone (3 tests)",
        "6 passed, 0 failed, 12 skipped",
    ] {
        writeln!(expected, "{row}").unwrap();
    }
    let output = run(folder.path(), &["FOLDER"]);
    assert_eq!(rows(&output).join("\n") + "\n", expected);
    assert_eq!(output.status.code(), Some(0));
    let quick = rows(&run(folder.path(), &["-g", "quick", "FOLDER"]));
    assert_eq!(quick, ["PASS arguments", "PASS last (3 tests)", "2 passed, 0 failed, 0 skipped"]);
    let named = rows(&run(folder.path(), &["FOLDER", "named"]));
    assert_eq!(named, ["PASS named (3 tests)", "1 passed, 0 failed, 0 skipped"]);
}

#[test]
fn options_that_cannot_be_read_end_the_run() {
    needs!(kvm());
    let folder = folder(&[("pass", &UNIT_PASS)]);
    write(folder.path(), "unittests.cfg", b"[broken]\nfile = pass.flat\nextra_params = -append 'no end\n");
    let output = run(folder.path(), &["FOLDER"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("broken: cannot split -append 'no end: xargs: unmatched single quote"), "{text}");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    // Nothing here needs /dev/fd, which a process substitution does.
    let script = std::fs::read_to_string(WRAPPER).unwrap();
    assert!(!script.contains("<(") && !script.contains(">("), "a process substitution fails without a word");
}

#[test]
fn a_flat_file_with_addresses_of_its_own_runs_as_well() {
    needs!(kvm());
    let folder = folder(&[]);
    write(folder.path(), "flat.flat", &multiboot_at(UNIT_PASS.code(), BASE as u32));
    assert_eq!(rows(&run(folder.path(), &["FOLDER"]))[0], "PASS flat (3 tests)");
}

#[test]
fn nothing_to_run_and_nothing_to_run_it_with_are_errors() {
    let empty = folder(&[]);
    let missing = empty.path().join("missing");
    for (folder, arguments, expected) in [
        (empty.path(), &["FOLDER"][..], "there are no tests to run in "),
        (&missing, &["FOLDER"], " is not a folder"),
        (empty.path(), &["-k", "/nonexistent", "FOLDER"], "there is no /nonexistent"),
        (empty.path(), &["-t", "soon", "FOLDER"], "-t takes seconds"),
        (empty.path(), &[], "Usage: "),
        (empty.path(), &["-x", "FOLDER"], "Usage: "),
    ] {
        let output = run(folder, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{expected:?}: {text}");
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    }
}
