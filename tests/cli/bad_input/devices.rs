//! Disks, networks and ports that make no sense or cannot be used.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::support::attempt::Attempt;
use crate::support::image::elf;
use crate::support::kvm;

#[test]
fn descriptions_of_devices_that_make_no_sense_are_refused() {
    let attempt = Attempt::new();
    for (option, expected) in [
        ("--disk=", "--disk"),
        ("--disk=path=", "--disk"),
        ("--disk=path=a,queues=0", "queues"),
        ("--disk=path=a,queues=65", "queues"),
        ("--disk=path=a,fly", "fly"),
        ("--disk=path=a,id=123456789012345678901", "20"),
        ("--net=", "tap=NAME or user"),
        ("--net=tap=", "1 to 15 bytes"),
        ("--net=tap=a/b", "1 to 15 bytes"),
        ("--net=tap=t,mac=01:00:00:00:00:00", "01:00:00:00:00:00"),
        ("--net=tap=t,queues=0", "queues=0"),
        ("--net=tap", "tap=tap0"),
        ("--net=tap=t,mtu=67", "68 to 65535"),
        ("--net=tap=t,ip=192.0.2.7", "192.0.2.7/24"),
        ("--net=user,ip=192.0.2.7/24", "user has"),
        ("--net=user,forward=80", "forward=8080:80"),
        ("--net=user,forward=0:80", "forward=0:80"),
        ("--port=agent", "--port"),
        ("--port==/tmp/x", "--port"),
        ("--vnc=5901", "unix:PATH"),
        ("--console=vga", "vga"),
        ("--screen=", "--screen"),
        ("--screen=1024", "WIDTHxHEIGHT in pixels, such as 1024x768"),
        ("--screen=0x768", "64 to 4095 pixels"),
        ("--screen=5000x768", "64 to 4095 pixels"),
        ("--screenshot-on-failure=a.png", "--screen"),
    ] {
        attempt.refused(["run", option], expected);
    }
    for device in [["--disk", "a"], ["--net", "user"], ["--port", "a=b"]] {
        attempt.refused([&["run", "--no-acpi"][..], &device].concat(), "--no-acpi");
    }
    attempt.refused(["run", "--no-acpi", "--console", "virtio", "--kernel", "/dev/null"], "");
    let on_pci = ["run", "--kernel", "/dev/null", "--transport", "pci"];
    attempt
        .refused([&on_pci[..], &["--no-acpi"]].concat(), "--transport pci needs ACPI: leave out --no-acpi");
    attempt.refused([&on_pci[..], &["--test-devices"]].concat(), "leave out --transport pci");
    attempt.refused(["run", "--transport", "isa"], "auto, mmio, pci");
}

#[test]
fn a_screen_is_shown_to_nobody_who_may_not_see_it() {
    let (attempt, kernel) = Attempt::with(&elf());
    let kernel = kernel.to_str().unwrap();
    attempt.refused(["run", "--vnc"], "--screen");
    attempt.refused(["run", "--screen", "--novnc=a"], "--vnc");
    attempt.refused(["run", "--screen", "--vnc=0.0.0.0:5901"], "add --vnc-password-file");
    let screen = ["run", "--kernel", kernel, "--screen", "--vnc=unix:a"];
    let long = attempt.file("password", b"longer than eight\n");
    let long = format!("--vnc-password-file={}", long.display());
    attempt.refused([&screen[..], &[&long]].concat(), "VNC passwords have at most 8");
    attempt.refused([&screen[..], &["--vnc-password-file=/missing"]].concat(), "No such file");
    attempt.refused([&screen[..], &["--novnc=/dev"]].concat(), "no file core/rfb.js");
}

#[test]
fn disks_that_are_none_or_in_use_are_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    let kernel = kernel.to_str().unwrap();
    let disk = attempt.file("disk", &[0; 4096]);
    let folder = disk.parent().unwrap();
    let missing = folder.join("missing");
    for (path, expected) in
        [(missing.as_path(), "No such file"), (folder, "directory"), ("/dev/null".as_ref(), "/dev/null")]
    {
        attempt.refused(["run", "--kernel", kernel, "--disk", path.to_str().unwrap()], expected);
    }
    let disk = disk.to_str().unwrap();
    let read_only = format!("path={disk},readonly");
    for second in [disk, &read_only] {
        let expected = "another machine or program";
        attempt.refused(["run", "--kernel", kernel, "--disk", disk, "--disk", second], expected);
    }
    assert_eq!(fs::read(disk).unwrap(), [0; 4096]);
}

#[test]
fn networks_that_cannot_be_used_are_refused_with_what_to_do() {
    let (attempt, kernel) = Attempt::with(&elf());
    let kernel = kernel.to_str().unwrap();
    attempt.refused(
        ["run", "--kernel", kernel, "--net", "tap=lo"],
        "--net tap=lo: it is an interface of another kind",
    );
    let fixed = "tap=kitet7,ip=192.0.2.7/24";
    attempt.refused(["run", "--kernel", kernel, "--net", fixed], "name one behind --");
}

#[test]
fn a_port_takes_the_place_of_nothing_that_is_there() {
    let (attempt, kernel) = Attempt::with(&elf());
    let file = attempt.file("precious", b"precious");
    let socket = file.with_file_name("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [&file, &socket] {
        let port = format!("agent={}", path.display());
        attempt.refused(
            ["run", "--kernel", kernel.to_str().unwrap(), "--port", &port],
            "there is something at that path",
        );
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(socket.exists());
}

#[test]
fn more_devices_than_lines_are_refused() {
    needs!(kvm());
    let (attempt, kernel) = Attempt::with(&elf());
    let disk = attempt.file("disk", &[0; 512]);
    let disk = format!("path={},readonly", disk.display());
    let mut arguments = vec!["run", "--kernel", kernel.to_str().unwrap()];
    for _ in 0..20 {
        arguments.extend(["--disk", &disk]);
    }
    attempt.refused(arguments, "there is room for 19 devices");
}
