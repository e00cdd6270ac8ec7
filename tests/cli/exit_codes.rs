//! The exit codes: that help, README and reference say the same, and that it is so.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::support::attempt::{Attempt, run};
use crate::support::image::{POWER_OFF, elf, elf_of};
use crate::support::{KITE, kvm, skipped};

const PAGES: [&str; 2] = ["README.md", "resources/doc/reference.md"];

/// What these arguments print.
fn printed(arguments: &[&str]) -> String {
    let end = Attempt::new().run(arguments);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    assert!(!end.text().is_empty(), "{arguments:?}");
    end.text().to_owned()
}

/// The section of a help text, as one line without its heading.
fn help_section(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Exit codes:").skip(1);
    let lines: Vec<_> =
        lines.take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect();
    assert!(!lines.is_empty(), "{help}");
    lines
}

/// The table in a help text: a code and what it means on each line.
fn help_table(help: &str) -> BTreeMap<u8, String> {
    let row = |line: &String| {
        let (code, meaning) = line.split_once("  ")?;
        Some((code.parse().ok()?, meaning.trim().to_owned()))
    };
    help_section(help).iter().filter_map(row).collect()
}

/// The section "Exit codes" of a page.
fn page_section(page: &str) -> Vec<&str> {
    let heading = |line: &str| line.starts_with('#');
    let lines = page.lines().skip_while(|line| !(heading(line) && line.ends_with("# Exit codes"))).skip(1);
    lines.take_while(|line| !heading(line)).collect()
}

/// The table in a page: a code and what it means in the first two columns.
fn page_table(page: &str) -> BTreeMap<u8, String> {
    let row = |line: &&str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(|cell| cell.trim().replace('`', ""));
        Some((cells.next()?.parse().ok()?, cells.next()?))
    };
    page_section(page).iter().filter_map(row).collect()
}

#[test]
fn help_and_version_exit_with_0() {
    let helps: [&[&str]; 10] = [
        &["--help"],
        &["-h"],
        &["help"],
        &["help", "run"],
        &["run", "--help"],
        &["matrix", "--help"],
        &["doctor", "--help"],
        &["inspect", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ];
    for arguments in helps {
        assert!(printed(arguments).contains("Usage: kite"), "{arguments:?}");
    }
    for arguments in [["--version"], ["-V"]] {
        assert_eq!(
            printed(&arguments),
            concat!("kite ", env!("CARGO_PKG_VERSION"), env!("KITE_COMMIT"), "\n")
        );
    }
}

#[test]
fn the_version_names_the_commit_that_it_was_built_from() {
    let git =
        Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let head = match git {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        other => return skipped(test_name!(), &format!("{other:?}")),
    };
    let expected = format!("kite {} ({})\n", env!("CARGO_PKG_VERSION"), &head[..12]);
    assert_eq!(printed(&["--version"]), expected);
}

#[test]
fn help_that_nobody_reads_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(KITE).arg("--help").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn the_exit_codes_are_the_same_in_every_help() {
    let help = printed(&["--help"]);
    assert_eq!(help_table(&help).into_keys().collect::<Vec<_>>(), [0, 123, 124, 125, 126, 127, 130, 255]);
    let section = help_section(&help);
    assert_eq!(help_section(&printed(&["run", "--help"])), section);
}

#[test]
fn readme_and_reference_have_the_exit_codes_of_the_help() {
    for page in PAGES {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        assert_eq!(page_table(&text), help_table(&printed(&["--help"])), "{page}");
    }
}

#[test]
fn each_code_means_what_the_table_says() {
    let attempt = Attempt::new();
    attempt.refused(["run", "--kernel", "none"], "none");
    if let Err(reason) = kvm() {
        return skipped("each_code_means_what_the_table_says (0 and 255)", &reason);
    }
    let crash = elf_of(b"\x0f\x0b");
    for (guest, code, stderr) in
        [(elf(), 0, ""), (crash, 255, "kite: the guest crashed: triple fault on vCPU 0\n")]
    {
        let end = attempt.end_of(&mut run(KITE, &attempt.file("kernel", &guest)));
        // Behind a crash's message is what each vCPU was at.
        let message = end.stderr.split_inclusive('\n').next().unwrap_or_default();
        assert_eq!((end.status.code(), message), (Some(code), stderr));
        assert_eq!(end.stderr.contains("\nvCPU 0: "), code == 255, "{}", end.stderr);
    }
}

#[test]
fn the_code_is_the_same_when_the_message_cannot_be_written() {
    needs!(kvm());
    let attempt = Attempt::new();
    for (guest, code) in [(elf_of(b"\x0f\x0b"), 255), (Vec::new(), 125)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let status = run(KITE, &attempt.file("kernel", &guest)).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

#[test]
fn output_that_is_lost_at_the_very_end_is_a_failure() {
    needs!(kvm());
    let attempt = Attempt::new();
    // mov dx, 0x3f8; mov al, 'h'; out dx, al
    let kernel = attempt.file("kernel", &elf_of(&[b"\x66\xba\xf8\x03\xb0h\xee", POWER_OFF].concat()));
    for _ in 0..20 {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = run(KITE, &kernel).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert!(
            stderr.starts_with("kite: cannot write the guest's output") && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}

#[test]
fn a_run_that_is_printed_as_a_spec_is_the_same_from_the_spec() {
    let attempt = Attempt::new();
    attempt.file("kernel", &elf_of(POWER_OFF));
    attempt.file("disk.img", &[0; 4096]);
    let options = ["run", "--memory=64M", "--kernel=kernel", "--force", "--no-rng", "--disk=disk.img"];
    let printed = attempt.run([&options[..], &["--print-spec"]].concat());
    assert_eq!((printed.status.code(), printed.stderr.as_str()), (Some(0), ""));
    attempt.file("folder/spec.json", &printed.stdout);
    let again = attempt.run(["run", "--spec", "folder/spec.json", "--print-spec"]);
    assert_eq!((again.stdout, again.stderr.as_str()), (printed.stdout, ""));
    needs!(kvm());
    for arguments in [&options[..], &["run", "--spec", "folder/spec.json"]] {
        let end = attempt.run(arguments);
        assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
