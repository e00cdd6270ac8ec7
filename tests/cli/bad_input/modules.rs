//! Folders of kernel modules that are not what they should be.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::attempt::Attempt;
use crate::support::image::elf;
use crate::support::{kvm, root};

/// A kernel, and a folder of modules with this `modules.dep`.
fn with_list(list: &[u8]) -> (Attempt, PathBuf) {
    let (attempt, kernel) = Attempt::with(&elf());
    attempt.file("modules/modules.dep", list);
    (attempt, kernel)
}

#[test]
fn a_missing_folder_is_named() {
    let (attempt, kernel) = Attempt::with(&elf());
    attempt.kernel_refused(&kernel, &["--modules", "none"], "none: No such file");
    attempt.kernel_refused(&kernel, &["--modules", "kernel"], "kernel");
    attempt.kernel_refused(&kernel, &["--modules", "/dev/null"], "/dev/null");
    attempt.kernel_refused(&kernel, &["--modules", ""], "");
}

#[test]
fn a_kernel_that_does_not_tell_its_version_needs_a_folder() {
    let (attempt, kernel) = Attempt::with(&elf());
    attempt.kernel_refused(&kernel, &["--module", "virtio_blk"], "--modules DIR");
}

#[test]
fn a_folder_without_a_list_is_refused() {
    let (attempt, kernel) = Attempt::with(&elf());
    std::fs::create_dir(attempt.path("modules")).unwrap();
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "depmod");
    attempt.pipe("modules/modules.dep");
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "modules.dep");
    std::fs::remove_file(attempt.path("modules/modules.dep")).unwrap();
    std::fs::create_dir(attempt.path("modules/modules.dep")).unwrap();
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "modules.dep");
}

#[test]
fn lists_without_the_modules_that_are_needed_are_refused() {
    for list in [&b""[..], b"\n\n", b"kernel/other.ko:\n", b"\0\0\0", &[0xff; 10_000]] {
        let (attempt, kernel) = with_list(list);
        attempt.kernel_refused(&kernel, &["--modules", "modules"], "modules");
    }
    let (attempt, kernel) = with_list(b"virtio_mmio.ko:\n");
    attempt.file("modules/virtio_mmio.ko", b"");
    attempt.kernel_refused(&kernel, &["--modules", "modules", "--module", "none"], "no kernel module none");
    attempt.kernel_refused(&kernel, &["--modules", "modules", "--module", "../x\ny"], "no kernel module");
}

#[test]
fn modules_that_are_listed_and_not_there_are_refused() {
    let (attempt, kernel) = with_list(b"a/virtio_mmio.ko: a/virtio.ko\n");
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "virtio.ko");
    for (bytes, what) in
        [(&b""[..], "it is empty"), (b"\x7fEL", "it is cut short"), (b"text\n\n", "it is neither")]
    {
        attempt.file("modules/a/virtio.ko", bytes);
        attempt.kernel_refused(
            &kernel,
            &["--modules", "modules"],
            &format!("virtio.ko cannot be used: {what}"),
        );
    }
    let mut header = [0; 64];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    attempt.file("modules/a/virtio.ko", &header);
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "virtio_mmio.ko");
    attempt.pipe("modules/a/virtio_mmio.ko");
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "no regular file");
}

#[test]
fn paths_that_lead_out_of_the_folder_are_refused() {
    for list in
        [&b"/etc/virtio_mmio.ko:\n"[..], b"../../virtio_mmio.ko:\n", b"virtio_mmio.ko: ../kernel.ko\n"]
    {
        let (attempt, kernel) = with_list(list);
        attempt.file("kernel.ko", b"");
        attempt.file("modules/virtio_mmio.ko", b"");
        attempt.kernel_refused(&kernel, &["--modules", "modules"], "modules.dep");
    }
}

#[test]
fn huge_lists_are_refused() {
    let (attempt, kernel) = with_list(b"");
    attempt.sparse("modules/modules.dep", b"", 100 << 30);
    attempt.kernel_refused(&kernel, &["--modules", "modules"], "modules.dep");
}

#[test]
fn huge_modules_are_refused() {
    needs!(kvm());
    for len in [64 << 20, 100 << 30] {
        let (attempt, kernel) = with_list(b"virtio_mmio.ko:\n");
        attempt.sparse("modules/virtio_mmio.ko", b"", len);
        attempt.kernel_refused(&kernel, &["--modules", "modules"], "");
    }
}

#[test]
fn folders_that_may_not_be_read_are_refused() {
    needs!(root());
    let (attempt, kernel) = with_list(b"virtio_mmio.ko:\n");
    let (kite, module) = (attempt.kite(), attempt.file("modules/virtio_mmio.ko", b""));
    for path in [module, attempt.path("modules/modules.dep"), attempt.path("modules")] {
        std::fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        attempt.refused_to_nobody(&kite, &kernel, &["--modules", "modules"], "Permission denied");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
}
