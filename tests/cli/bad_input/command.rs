//! `kite run -- COMMAND` with options that make no sense or name what is not there.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::attempt::Attempt;
use crate::support::image::elf;

#[test]
fn options_for_a_command_need_one_and_are_looked_at() {
    let attempt = Attempt::new();
    for option in [
        &["--root", "/"][..],
        &["--share", "/"],
        &["--cwd", "/"],
        &["--env", "A=b"],
        &["--clear-env"],
        &["--user", "root"],
        &["--timeout", "5"],
        &["--idle-timeout", "5"],
        &["--kernel-log", "log"],
        &["--junit", "junit"],
    ] {
        let expected =
            format!("'{0}' is for a command in the guest, which comes after `--`: kite run {0}", option[0]);
        attempt.refused([&["run"], option].concat(), &expected);
    }
    for (option, expected) in [
        ("--root=", "names no folder"),
        ("--share=", "DIR[:GUESTDIR][:rw"),
        ("--share=:rw", "DIR[:GUESTDIR][:rw"),
        ("--env==x", "NAME=VALUE"),
        ("--user=a:b:c", "USER:GROUP"),
        ("--user=", "USER:GROUP"),
        ("--timeout=0", "over at once"),
        ("--timeout=soon", "5m"),
        ("--idle-timeout=-1s", "5m"),
    ] {
        attempt.refused(["run", option, "--", "true"], expected);
    }
}

#[test]
fn an_image_is_named_and_goes_with_no_other_root() {
    let attempt = Attempt::new();
    attempt.file("text", b"no image");
    let kernel = attempt.file("kernel", &elf());
    let kernel = kernel.to_str().unwrap();
    for (options, expected) in [
        (&["--image", ""][..], "--image: it names no image"),
        (&["--image", "x", "--root", "/"], "--root"),
        (&["--entrypoint", "sh"], "--image"),
        (&["--insecure-registry"], "--image"),
        (&["--pull"], "--image"),
        (&["--image", "x", "--no-acpi"], "--no-acpi"),
        (&["--image", "x", "--initrd", kernel], "--initrd"),
        (&["--image", "x", "--test-devices"], "--test-devices"),
        (&["--image", "x", "--console", "serial"], "--console"),
        (&["--image", "./text"], "--image ./text: "),
        (&["--image", "./missing"], "there is neither a folder nor a file"),
        (&["--image", "oci:x"], "write an image without 'oci:'"),
    ] {
        attempt.refused([&["run", "--kernel", kernel], options].concat(), expected);
    }
}

#[test]
fn what_does_not_go_with_a_command_is_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    let kernel = kernel.to_str().unwrap();
    for (options, expected) in [
        (&["--initrd", kernel][..], "--initrd"),
        (&["--no-acpi"], "--no-acpi"),
        (&["--console", "serial"], "--console"),
        (&["--test-devices"], "--test-devices"),
        (&["--on-reboot", "restart"], "--on-reboot"),
        (&["--root", "disk"], "--disk"),
    ] {
        attempt.refused([&["run", "--kernel", kernel], options, &["--", "true"]].concat(), expected);
    }
}

#[test]
fn folders_and_files_that_cannot_be_used_are_named() {
    let (attempt, kernel) = Attempt::with(&elf());
    let file = attempt.file("file", b"kept");
    let (kernel, file) = (kernel.to_str().unwrap(), file.to_str().unwrap());
    symlink(file, attempt.path("link")).unwrap();
    nix::unistd::mkfifo(&attempt.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::hard_link(attempt.file("precious", b"kept"), attempt.path("hard")).unwrap();
    for (options, expected) in [
        (["--root", "missing"], "--root missing: No such file"),
        (["--root", file], "Not a directory"),
        (["--share", "missing:rw"], "--share missing: No such file"),
        (["--share", "/:/"], "that is --root"),
        (["--kernel-log", "missing/log"], "missing/log: No such file"),
        (["--kernel-log", "link"], "link: it is a symbolic link; name the file itself"),
        (["--kernel-log", "fifo"], "fifo: it is a pipe that nobody reads"),
        (["--kernel-log", "hard"], "hard: the file has another name"),
        (["--kernel-log", "."], "Is a directory"),
        (["--junit", "missing/junit"], "--junit: cannot write missing/junit: there is no folder missing"),
        (["--junit", "link"], "link"),
        (["--junit", "hard"], "hard: the file has another name"),
        (["--junit", "."], "not a regular file"),
    ] {
        let run = ["run", "--force", "--kernel", kernel];
        attempt.refused([&run, &options[..], &["--", "true"]].concat(), expected);
    }
    let twice = ["run", "--kernel", kernel, "--share", "/usr:/mnt", "--share", "/etc:/mnt", "--", "true"];
    attempt.refused(twice, "two shares are to be at /mnt");
    assert_eq!(fs::read(file).unwrap(), b"kept");
}

#[test]
fn a_kernel_that_is_no_linux_is_told_of_in_a_line() {
    let (attempt, kernel) = Attempt::with(&elf());
    let arguments = ["run", "--kernel", kernel.to_str().unwrap(), "--", "true"];
    attempt.refused(arguments, "kernel is no Linux kernel, and a command needs one");
}
