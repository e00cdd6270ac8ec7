//! Command lines that make no sense.

use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::support::attempt::{Attempt, run};
use crate::support::image::{bzimage_with, elf};
use crate::support::{KITE, kvm, skipped};

#[test]
fn unknown_commands_and_options_are_refused() {
    let attempt = Attempt::new();
    for (arguments, expected) in [
        (&["fly"][..], "there is no command 'fly' of kite's; to run it in a guest: kite run -- fly"),
        (&["ru"], "ru"),
        (&["--fly"], "--fly"),
        (&["run", "--fly"], "--fly"),
        (&["run", "uname", "-a"], "comes after `--`: kite run -- uname -a"),
        (&["run", "-m", "1G", "sh", "-c", "a b"], "comes after `--`: kite run -m 1G -- sh -c 'a b'"),
        (&["run", "bzImage"], "kite run --kernel bzImage"),
        (&["run", "kernel", "--", "true"], "unexpected argument 'kernel'"),
        (&["run", "--"], "there is no command after `--`"),
        (&["run", "--", ""], "begins with an empty word, which names no program"),
        (&["run", "-x", "1G"], "there is no option '-x'; try `kite run --help`"),
        (&["run", "--mem", "1G"], "there is no option '--mem'; do you mean '--memory'?"),
        (&["bench", "boots"], "there is no command 'boots'; do you mean 'boot'?"),
        (&["run", "--kernel"], "--kernel"),
        (&["run", "--kernel", "a", "--kernel", "b"], "--kernel"),
        (&["run", "--initrd", "a", "--modules", "b"], "--initrd"),
        (&["run", "--on-reboot", "explode"], "explode"),
        (&["run", "--no-acpi=maybe"], "'--no-acpi' takes no value"),
        (&["bench", "boot", "--runs", "2"], "a whole number from 3 to 1000; try `kite bench boot --help`"),
        (&["bench", "exits", "--blocks", "x"], "a whole number from 3 to 1000"),
        (&["bench", "exits", "--cpus", "a,b"], "a whole number"),
        (&["matrix", "x", "--jobs", "-1"], "a whole number, at least 1"),
        (&["matrix"], "<FILE> is missing"),
        (&["doctor", "--fly"], "--fly"),
        (&[""], ""),
    ] {
        attempt.refused(arguments, expected);
    }
}

#[test]
fn without_a_command_kite_lists_those_that_there_are() {
    let attempt = Attempt::new();
    for (arguments, commands) in
        [(&[][..], &["run", "matrix", "inspect", "bench", "doctor"][..]), (&["bench"], &["exits", "boot"])]
    {
        let end = attempt.run(arguments);
        assert_eq!((end.status.code(), end.text()), (Some(125), ""), "{}", end.stderr);
        for command in commands {
            assert!(end.stderr.contains(&format!("\n  {command}  ")), "{command}: {}", end.stderr);
        }
    }
}

#[test]
fn disks_and_shares_that_are_written_in_another_way_are_answered_with_kite_s() {
    let attempt = Attempt::new();
    for (option, expected) in [
        ("--disk=file=", "unknown option 'file='; there are path="),
        ("--disk=file=a.img,format=raw", "unknown option 'file=a.img'"),
        ("--disk=a.img,readonly", "options need a path by name: path=a.img,readonly"),
        ("--disk=a.img:ro", "options need a path by name: path=a.img,readonly"),
        ("--disk=path=", "it names no file"),
        ("--module=", "'--module <NAME>'"),
        ("--share=.:rx", "'rx' is neither rw nor ro"),
        ("--share=.:mnt", "'mnt' is neither rw nor ro, nor a folder of the guest's, which begins with /"),
    ] {
        attempt.refused(["run", option, "--", "true"], expected);
    }
}

#[test]
fn text_that_is_not_unicode_is_refused() {
    let attempt = Attempt::new();
    let bytes = |bytes| std::ffi::OsStr::from_bytes(bytes);
    attempt.refused([bytes(b"\xff")], "");
    attempt.refused([bytes(b"run"), bytes(b"--append"), bytes(b"\xff")], "");
    attempt.refused([bytes(b"run"), bytes(b"--kernel"), bytes(b"\xff\xfe")], "No such file");
}

#[test]
fn sizes_of_memory_that_no_guest_can_have_are_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    for (size, expected) in [
        ("0", "at least 64M"),
        ("1", "at least 64M"),
        ("63M", "at least 64M"),
        ("67104768", "at least 64M"),
        ("", "--memory"),
        ("512", "512 is bytes, and a guest needs at least 64M; do you mean 512M?"),
        ("x", "such as 512M"),
        ("M", "such as 512M"),
        ("-1", "--memory"),
        ("1.5G", "do you mean 1536M?"),
        ("512 M", "such as 512M"),
        ("512MM", "such as 512M"),
        ("\u{665}12M", "such as 512M"),
        ("4P", "such as 512M"),
        ("18446744073709551616", "no processor"),
        ("18446744073709551615K", "no processor"),
        ("4096T", "no processor"),
        ("2047T", "this host has"),
    ] {
        let argument = format!("--memory={size}");
        attempt.refused(["run", "--kernel", kernel.to_str().unwrap(), &argument], expected);
    }
}

#[test]
fn numbers_of_cpus_that_no_guest_can_have_are_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    for (cpus, expected) in [
        ("0", "for '--cpus <N>': it is a whole number, at least 1"),
        ("-1", "a whole number, at least 1"),
        ("x", "a whole number, at least 1"),
        ("", "--cpus"),
        ("1.5", "--cpus"),
        ("4294967296", "--cpus"),
        ("99999999999999999999999", "--cpus"),
    ] {
        attempt.kernel_refused(&kernel, &[&format!("--cpus={cpus}")], expected);
    }
    if let Err(reason) = kvm() {
        return skipped("numbers_of_cpus_that_no_guest_can_have_are_refused (beyond KVM's)", &reason);
    }
    for cpus in ["100000", "4294967295"] {
        attempt.kernel_refused(&kernel, &["--cpus", cpus], &format!("{cpus} CPUs are too many"));
    }
}

#[test]
fn kernel_command_lines_that_do_not_fit_are_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    let line = |len| "x".repeat(len);
    attempt.kernel_refused(
        &kernel,
        &["--cmdline", &line(2048)],
        "has 2048 bytes, and this kernel takes 2047",
    );
    attempt.kernel_refused(&kernel, &["--append", &line(2047)], "this kernel takes 2047");
    attempt.kernel_refused(&kernel, &["--cmdline", &line(120_000)], "this kernel takes 2047");
    let modest = attempt.file("modest", &bzimage_with(0x238, &100u32.to_le_bytes()));
    attempt.kernel_refused(&modest, &["--cmdline", &line(101)], "has 101 bytes, and this kernel takes 100");
    let silent = attempt.file("silent", &bzimage_with(0x238, &0u32.to_le_bytes()));
    attempt.kernel_refused(&silent, &["--cmdline", &line(256)], "has 256 bytes, and this kernel takes 255");
    if let Err(reason) = kvm() {
        return skipped("kernel_command_lines_that_do_not_fit_are_refused (one that does)", &reason);
    }
    let end = attempt.end_of(run(KITE, &kernel).args(["--cmdline", &line(2047)]));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
}

#[test]
fn kernel_command_lines_of_more_than_one_line_are_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    for line in ["quiet\ninit=/bin/sh", "\n", "quiet\n"] {
        attempt.kernel_refused(&kernel, &["--append", line], "line break");
        attempt.kernel_refused(&kernel, &["--cmdline", line], "line break");
    }
}

#[test]
fn limits_and_groups_that_make_no_sense_are_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    let refused = |arguments: &[&str], expected: &str| attempt.kernel_refused(&kernel, arguments, expected);
    for (limit, expected) in [
        ("", "a limit is cpu=CPUS"),
        ("speed=1", "there is no limit \"speed\""),
        ("cpu", "a limit is cpu=CPUS"),
        ("cpu=0", "at least 0.01"),
        ("cpu=-1", "at least 0.01"),
        ("memory=0", "more than 0"),
        ("memory=x", "such as 512M"),
        ("memory=600", "do you mean 600M?"),
        ("memory=99999999999999T", "no more than any host has"),
        ("pids=0", "more than 0"),
        ("pids=many", "a whole number"),
        ("pids=1,pids=2", "pids is limited twice"),
        ("io=8:0", "an io limit is DEVICE"),
        ("io=8:0:rbps=0", "more than 0"),
        ("io=/nowhere/at/all:rbps=1M", "No such file"),
        ("io=0:4000000000:rbps=1M", "no block device 0:4000000000"),
        ("io=/proc/self/maps:rbps=1M", "is on no block device of its own"),
    ] {
        refused(&["--limit", limit], expected);
    }
    refused(&["--limit", "cpu=1", "--limit", "cpu=2"], "--limit: cpu is limited twice");
    for name in ["", ".", "..", "../a", "a/b", "/a", ".a", "-", "a b", "a\n", "cgroup.procs", "memory.max"] {
        refused(&[&format!("--cgroup={name}")], "--cgroup");
    }
}

#[test]
fn sandboxes_that_make_no_sense_are_refused_from_wherever_they_come() {
    let (attempt, kernel) = Attempt::with(&elf());
    for (sandbox, expected) in [
        ("maybe", "it is auto, require or none"),
        ("require,seccomp", "'seccomp' is no layer to leave out"),
        ("auto,no-namespaces", "add no-root"),
        ("require\nnone", "it is auto, require or none"),
    ] {
        attempt.kernel_refused(&kernel, &[&format!("--sandbox={sandbox}")], expected);
        let run =
            |options: &[&str]| attempt.end_of(run(KITE, &kernel).args(options).env("KITE_SANDBOX", sandbox));
        for options in [&[][..], &["--limit", "pids=1000"], &["--", "true"]] {
            let end = run(options);
            end.assert_refusal(expected);
            end.assert_refusal("$KITE_SANDBOX");
        }
        // The option wins.
        assert!(!run(&["--sandbox=none"]).stderr.contains("KITE_SANDBOX"));
    }
    let end =
        attempt.end_of(run(KITE, &kernel).env("KITE_SANDBOX", std::ffi::OsStr::from_bytes(b"auto\xff")));
    end.assert_refusal("$KITE_SANDBOX");
}

#[test]
fn what_starts_kite_many_times_refuses_a_sandbox_that_makes_no_sense_once() {
    let (attempt, kernel) = Attempt::with(&elf());
    let path = kernel.to_str().unwrap();
    let matrix = format!(
        "[[kernel]]\nname = 'A'\npath = '{path}'\n[[kernel]]\nname = 'B'\npath = '{path}'\n\
         [[command]]\nname = 'c'\nrun = ['true']\n"
    );
    let matrix = attempt.file("matrix.toml", matrix.as_bytes());
    for arguments in [&["matrix", matrix.to_str().unwrap()][..], &["bench", "boot", "--kernel", path]] {
        let mut kite = Command::new(KITE);
        attempt.end_of(kite.args(arguments).env("KITE_SANDBOX", "maybe")).assert_refusal("$KITE_SANDBOX");
    }
}
