//! Kernels and initrds that are missing, closed, or no files at all.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::attempt::{Attempt, run};
use crate::support::image::elf;
use crate::support::{KITE, kvm, root};

#[test]
fn a_missing_kernel_is_named() {
    let attempt = Attempt::new();
    let path = attempt.path("none");
    attempt.kernel_refused(&path, &[], path.to_str().unwrap());
    attempt.kernel_refused(&path, &[], "No such file");
    attempt.kernel_refused(&attempt.file("file", b"").join("below"), &[], "Not a directory");
    attempt.kernel_refused(Path::new(""), &[], "");
}

#[test]
fn what_is_no_regular_file_is_no_kernel() {
    let attempt = Attempt::new();
    let pipe = attempt.pipe("pipe");
    for path in [Path::new("/dev/zero"), Path::new("/dev/null"), &pipe] {
        attempt.kernel_refused(path, &[], "not a regular file");
    }
}

#[test]
fn a_folder_or_a_version_without_a_kernel_says_what_would_be_one() {
    let attempt = Attempt::new();
    attempt.kernel_refused(Path::new("/dev"), &[], "/dev holds no kernel, neither arch/x86/boot/bzImage nor");
    attempt.kernel_refused(Path::new("0.9.9"), &[], "no file 0.9.9, and no installed kernel of that version");
    std::fs::create_dir_all(attempt.path("0.9.9/arch/x86/boot")).unwrap();
    attempt.kernel_refused(Path::new("0.9.9"), &[], "0.9.9 holds no kernel");
    // What was built there is taken, and judged.
    attempt.file("0.9.9/arch/x86/boot/bzImage", b"text\n");
    attempt.kernel_refused(
        Path::new("0.9.9"),
        &[],
        "cannot boot 0.9.9/arch/x86/boot/bzImage: it looks like text",
    );
}

#[test]
fn links_that_lead_nowhere_are_no_kernel() {
    let attempt = Attempt::new();
    symlink("nowhere", attempt.path("dangling")).unwrap();
    symlink("round", attempt.path("round")).unwrap();
    attempt.kernel_refused(&attempt.path("dangling"), &[], "No such file");
    attempt.kernel_refused(&attempt.path("round"), &[], "symbolic links");
}

#[test]
fn odd_names_stay_on_one_line_and_say_nothing_to_the_terminal() {
    let attempt = Attempt::new();
    for name in ["with\nbreak", "with\x1b[2Jescape", "with\rreturn"] {
        attempt.kernel_refused(&attempt.path(name), &[], "No such file");
        attempt.kernel_refused(&attempt.file("kernel", &elf()), &["--initrd", name], "No such file");
    }
}

#[test]
fn a_kernel_in_the_environment_is_looked_for_there_and_nowhere_else() {
    let attempt = Attempt::new();
    let path = attempt.path("none");
    let mut command = std::process::Command::new("env");
    command.arg(format!("KITE_KERNEL={}", path.display())).args([KITE, "run"]);
    attempt.end_of(&mut command).assert_refusal(path.to_str().unwrap());
}

#[test]
fn the_kernel_of_a_tree_is_found_in_it_and_named() {
    let attempt = Attempt::new();
    attempt.file("arch/x86/boot/bzImage", b"no kernel");
    let end = attempt.run(["run"]);
    let lines: Vec<_> = end.stderr.lines().collect();
    assert_eq!(lines[0], "kite: the kernel is arch/x86/boot/bzImage, built in this folder");
    assert!(lines[1].starts_with("kite: cannot boot arch/x86/boot/bzImage: "), "{}", end.stderr);
    // What is named comes first.
    attempt.refused(["run", "-k", "none"], "cannot boot none");
    attempt.file("kite.toml", b"kernel = './other'\n");
    attempt.refused(["run"], "/./other: ");
    let mut command = std::process::Command::new("env");
    attempt
        .end_of(command.args(["KITE_KERNEL=none", KITE, "run", "--no-config"]))
        .assert_refusal("cannot boot none");
}

#[test]
fn a_missing_initrd_is_named() {
    let (attempt, kernel) = Attempt::with(&elf());
    attempt.kernel_refused(&kernel, &["--initrd", "none"], "cannot use initrd none: No such file");
}

#[test]
fn what_is_no_regular_file_is_no_initrd() {
    let (attempt, kernel) = Attempt::with(&elf());
    attempt.pipe("pipe");
    for path in ["/", "/dev/zero", "/dev/null", "pipe"] {
        attempt.kernel_refused(&kernel, &["--initrd", path], "not a regular file");
    }
}

#[test]
fn an_empty_initrd_is_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    attempt.file("empty", b"");
    attempt.kernel_refused(&kernel, &["--initrd", "empty"], "it is empty");
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    needs!(kvm());
    let (attempt, kernel) = Attempt::with(&elf());
    for len in [63 << 20, 64 << 20, (64 << 20) + 1, 100 << 30] {
        attempt.sparse("large", b"", len);
        attempt.kernel_refused(&kernel, &["--initrd", "large"], "do not fit in memory beside the kernel");
    }
}

#[test]
fn what_an_initrd_holds_is_the_kernels_business() {
    needs!(kvm());
    let (attempt, kernel) = Attempt::with(&elf());
    for content in [&b"\0"[..], b"070701 truncated", &[0xa5; 100_000]] {
        attempt.file("initrd", content);
        let end = attempt.end_of(run(KITE, &kernel).args(["--initrd", "initrd"]));
        assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
fn files_that_may_not_be_read_are_refused() {
    needs!(root());
    let attempt = Attempt::new();
    let (kite, kernel, secret) =
        (attempt.kite(), attempt.file("kernel", &elf()), attempt.file("secret", &elf()));
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    attempt.refused_to_nobody(&kite, &secret, &[], "Permission denied");
    attempt.refused_to_nobody(&kite, &kernel, &["--initrd", "secret"], "Permission denied");
    let hidden = attempt.file("closed/kernel", &elf());
    std::fs::set_permissions(attempt.path("closed"), Permissions::from_mode(0o700)).unwrap();
    attempt.refused_to_nobody(&kite, &hidden, &[], "Permission denied");
}
