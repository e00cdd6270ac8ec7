//! Every fuzz target with random bytes, the same ones in every run, and with the inputs that once were findings.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;

use devices::virtio::testing::watched;

/// Runs one input; whatever goes wrong, what it was is told.
fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = watched(name, || catch_unwind(AssertUnwindSafe(|| target(input)))) {
        eprintln!("fuzz target {name}");
        resume_unwind(panic);
    }
}

/// Random bytes that belong to `seed` (xorshift64, Marsaglia, 2003): few values are more frequent than others, as in
/// inputs that a person would write.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    };
    let len = next() % 2000;
    (0..len)
        .map(|_| match next() % 4 {
            0 => 0,
            1 => (next() % 16) as u8,
            _ => next() as u8,
        })
        .collect()
}

/// Runs target `name` with `count` inputs.
fn seeded(name: &str, count: u64) {
    let target = fuzz::target(name).expect("a target of this name");
    for seed in 1..=count {
        run(&format!("{name}, seed {seed}"), target, &bytes(seed));
    }
}

#[test]
fn any_driver_of_queues_does_no_harm() {
    seeded("queue", 500);
}

#[test]
fn any_driver_of_the_entropy_device_does_no_harm() {
    seeded("rng", 500);
}

#[test]
fn any_unit_test_does_no_harm() {
    seeded("testdev", 500);
}

#[test]
fn any_driver_of_a_disk_does_no_harm() {
    seeded("block", 300);
}

#[test]
fn any_driver_of_a_network_device_does_no_harm() {
    seeded("net", 300);
}

#[test]
fn any_driver_of_a_shared_folder_does_no_harm() {
    seeded("fs", 600);
}

#[test]
fn any_driver_of_the_console_does_no_harm() {
    seeded("console", 300);
}

#[test]
fn any_driver_of_the_balloon_does_no_harm() {
    seeded("balloon", 300);
}

#[test]
fn any_driver_of_the_graphics_card_does_no_harm() {
    seeded("gpu", 300);
}

#[test]
fn any_configuration_of_a_bus_does_no_harm() {
    seeded("pci", 500);
}

#[test]
fn any_driver_of_the_serial_port_does_no_harm() {
    seeded("serial", 300);
}

#[test]
fn any_kernel_image_does_no_harm() {
    seeded("kernel", 3000);
}

#[test]
fn any_list_of_modules_does_no_harm() {
    seeded("modules", 1000);
}

#[test]
fn any_table_of_symbols_does_no_harm() {
    seeded("kallsyms", 1000);
}

#[test]
fn any_output_of_a_command_has_the_same_results_in_whatever_pieces_it_comes() {
    seeded("ktap", 1000);
}

#[test]
fn any_tree_is_an_image_that_is_read_as_it_is() {
    seeded("erofs", 1000);
}

#[test]
fn any_layers_do_no_harm() {
    seeded("layers", 1000);
}

#[test]
fn any_viewer_of_the_screen_does_no_harm() {
    seeded("vnc", 1000);
}

#[test]
fn any_client_of_a_supervisor_and_any_supervisor_do_no_harm() {
    seeded("control", 1000);
}

/// A target that shows the images it makes.
type Shown = fn(&[u8], &dyn Fn(&File));

/// Checks every image that `target` makes of `count` inputs with the kernel developers' own program.
fn checked(target: Shown, count: u64) {
    const FSCK: &str = "fsck.erofs";
    if let Err(why) = Command::new(FSCK).arg("-V").output() {
        return println!("skipped: EROFS images: {FSCK}: {why}: apt install erofs-utils");
    }
    let images = Cell::new(0);
    for seed in 1..=count {
        target(&bytes(seed), &|image| {
            let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
            let checked = Command::new(FSCK).args(["--extract", &path]).output().expect("it was there");
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "seed {seed}: {}: {said}", checked.status);
            images.set(images.get() + 1);
        });
    }
    assert!(images.get() > count / 10, "{} of {count} inputs made an image", images.get());
}

#[test]
fn any_tree_that_is_written_passes_fsck() {
    checked(fuzz::erofs::run_and, 200);
}

#[test]
fn any_layers_that_are_taken_pass_fsck() {
    checked(fuzz::layers::run_and, 200);
}

#[test]
fn what_was_found_once_is_not_found_again() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in fuzz::TARGETS {
        let Ok(inputs) = fs::read_dir(corpus.join(name)) else { continue };
        for input in inputs {
            let path = input.unwrap().path();
            run(&format!("{name}, input {}", path.display()), *target, &fs::read(&path).unwrap());
        }
    }
}
