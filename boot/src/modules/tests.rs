//! Folders of modules as `depmod` leaves them, and broken ones.

use super::*;
use tempfile::TempDir;

const LIST: &str = "\
kernel/fs/fuse/virtiofs.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko kernel/fs/fuse/fuse.ko.zst
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/fuse/fuse.ko.zst:
kernel/drivers/char/hw_random/virtio-rng.ko.gz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
";

fn folder(list: impl AsRef<[u8]>) -> (TempDir, Modules) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("modules.dep"), list).unwrap();
    let modules = Modules::open(dir.path()).unwrap();
    (dir, modules)
}

fn names(modules: &Modules, wanted: &[&str]) -> Vec<String> {
    modules.resolve(wanted, &[]).unwrap().into_iter().map(|file| file.name).collect()
}

#[test]
fn what_a_module_needs_comes_before_it() {
    let (dir, modules) = folder(LIST);
    assert_eq!(names(&modules, &["virtio_mmio"]), ["virtio_ring", "virtio", "virtio_mmio"]);
    assert_eq!(names(&modules, &["virtiofs"]), ["fuse", "virtio_ring", "virtio", "virtiofs"]);
    let files = modules.resolve(&["fuse"], &[]).unwrap();
    assert_eq!(files[0].path, dir.path().join("kernel/fs/fuse/fuse.ko.zst"));
    assert_eq!(files[0].file_name(), "fuse.ko.zst");
}

#[test]
fn the_wanted_order_is_kept_and_nothing_comes_twice() {
    let (_dir, modules) = folder(LIST);
    let wanted = ["virtio_rng", "virtio_mmio", "virtio", "virtio_rng"];
    assert_eq!(names(&modules, &wanted), ["virtio_ring", "virtio", "virtio_rng", "virtio_mmio"]);
    assert!(names(&modules, &[]).is_empty());
}

#[test]
fn dashes_and_underscores_are_one() {
    let (_dir, modules) = folder(LIST);
    assert_eq!(names(&modules, &["virtio-mmio"]), names(&modules, &["virtio_mmio"]));
    assert_eq!(names(&modules, &["virtio-rng"]), names(&modules, &["virtio_rng"]));
}

#[test]
fn an_optional_module_that_is_not_there_is_left_out() {
    let (_dir, modules) = folder(LIST);
    let names = |optional: &[&str]| -> Vec<String> {
        modules.resolve(&["virtio"], optional).unwrap().into_iter().map(|file| file.name).collect()
    };
    assert_eq!(names(&["virtio_balloon"]), ["virtio_ring", "virtio"]);
    assert_eq!(names(&["virtio_balloon", "virtio_rng"]), ["virtio_ring", "virtio", "virtio_rng"]);
}

#[test]
fn part_of_a_name_is_not_the_name() {
    let (_dir, modules) = folder(LIST);
    for name in ["mmio", "virtio_mmi", "virtio_mmio.ko", "virtio/virtio", "", "_mmio", "VIRTIO"] {
        assert!(matches!(modules.resolve(&[name], &[]), Err(Error::Missing { .. })), "{name:?}");
    }
}

#[test]
fn built_in_modules_need_no_file() {
    let (dir, modules) = folder(LIST);
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/lib/crc-t10dif.ko\n")
        .unwrap();
    assert_eq!(names(&modules, &["ext4", "virtio", "crc_t10dif"]), ["virtio_ring", "virtio"]);
}

#[test]
fn a_missing_module_is_named_with_its_folder() {
    let (dir, modules) = folder(LIST);
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    let error = modules.resolve(&["virtio", "ext4", "btrfs"], &[]).unwrap_err();
    assert_eq!(error.to_string(), format!("no kernel module btrfs in {}", dir.path().display()));
}

#[test]
fn a_folder_without_a_list_asks_for_depmod() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("lib/modules/6.1.0-1-amd64");
    let error = Modules::open(&dir).unwrap_err();
    assert!(matches!(error, Error::Folder(..)), "{error}");
    fs::create_dir_all(&dir).unwrap();
    let error = Modules::open(&dir).unwrap_err().to_string();
    assert!(error.ends_with(&format!("run `depmod -b {} 6.1.0-1-amd64`", root.path().display())), "{error}");
    fs::create_dir(dir.join("modules.dep")).unwrap();
    assert!(matches!(Modules::open(&dir), Err(Error::Malformed { .. })));
}

#[test]
fn a_cycle_ends() {
    let (_dir, modules) = folder("a.ko: b.ko a.ko\nb.ko: a.ko b.ko\n");
    assert_eq!(names(&modules, &["a", "b"]), ["a", "b"]);
}

#[test]
fn paths_that_leave_the_folder_are_refused() {
    for path in ["/etc/x.ko", "../x.ko", "kernel/../../x.ko", "./x.ko"] {
        for list in [format!("{path}:\n"), format!("x.ko: {path}\n")] {
            let (_dir, modules) = folder(&list);
            let refused = modules.resolve(&["x"], &[]);
            assert!(matches!(refused, Err(Error::Malformed { .. })), "{list:?}: {refused:?}");
        }
    }
}

#[test]
fn links_that_leave_the_folder_are_refused() {
    let (dir, modules) = folder("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n");
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("kernel")).unwrap();
    let (link, own) = (dir.path().join("kernel/b.ko"), dir.path().join("own"));
    for file in [&outside.path().join("secret"), &own] {
        fs::write(file, "").unwrap();
    }
    std::os::unix::fs::symlink(outside.path().join("secret"), &link).unwrap();
    let error = modules.resolve(&["a"], &[]).unwrap_err().to_string();
    assert!(
        error.ends_with("b.ko cannot be used: it is a link that leads out of the folder of modules"),
        "{error}"
    );
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("../own", &link).unwrap();
    assert_eq!(names(&modules, &["a"]), ["b", "a"]);
}

#[test]
fn needs_that_are_no_modules_are_refused() {
    for need in [&b"kernel"[..], b"x.txt", b".ko", b"d/.ko.xz", b"\xff\xfe.ko", b"\x1b[31m.ko", b"a\rb.ko"] {
        let (_dir, modules) = folder([b"x.ko: ", need, b"\n"].concat());
        let refused = modules.resolve(&["x"], &[]);
        assert!(matches!(refused, Err(Error::Malformed { .. })), "{need:?}: {refused:?}");
    }
}

#[test]
fn nonsense_around_a_line_is_passed_over() {
    let (_dir, modules) = folder(b"\n\n:\n\xff\xff: \xfe\nno colon\n.ko:\nx.ko: y.ko  \ny.ko: \0\n");
    assert_eq!(names(&modules, &["x"]), ["y", "x"]);
}

#[test]
fn a_list_that_is_cut_short_is_no_list() {
    let (_dir, modules) = folder("a.ko:\nb.ko: a.ko");
    assert_eq!(names(&modules, &["a"]), ["a"]);
    let error = modules.resolve(&["b"], &[]).unwrap_err().to_string();
    assert!(error.ends_with("it has no end of its last line: it is cut short"), "{error}");
}

#[test]
fn a_line_is_found_wherever_reads_cut_it() {
    for filler in LINE_MAX - 30..LINE_MAX + 3 {
        let mut list = "kernel/filler.ko:\n".repeat(filler / 18);
        list.push_str(&"#".repeat(filler % 18));
        list.push_str("\nkernel/wanted.ko: kernel/need.ko\n");
        let (_dir, modules) = folder(&list);
        assert_eq!(names(&modules, &["wanted"]), ["need", "wanted"], "{filler}");
    }
}

#[test]
fn a_huge_line_is_refused() {
    let (dir, modules) = folder("x".repeat(LINE_MAX + 1) + ".ko:\nwanted.ko:\n");
    assert!(matches!(modules.resolve(&["wanted"], &[]), Err(Error::Malformed { .. })));
    let endless = File::create(dir.path().join("modules.dep")).unwrap();
    endless.set_len(1 << 40).unwrap();
    assert!(matches!(modules.resolve(&["wanted"], &[]), Err(Error::Malformed { .. })));
}

#[test]
fn a_huge_list_is_refused() {
    let (_dir, modules) =
        folder("kernel/some/module.ko: kernel/some/need.ko\n".repeat(LIST_MAX as usize / 40));
    assert!(matches!(modules.resolve(&["wanted"], &[]), Err(Error::Malformed { .. })));
}

#[test]
fn a_module_that_is_gone_or_no_file_cannot_be_opened() {
    let (dir, modules) = folder("gone.ko:\nfolder.ko:\n");
    fs::create_dir(dir.path().join("folder.ko")).unwrap();
    let files = modules.resolve(&["gone", "folder"], &[]).unwrap();
    assert!(matches!(files[0].open(), Err(Error::Open(..))));
    assert!(matches!(files[1].open(), Err(Error::NotRegular(_))));
}
