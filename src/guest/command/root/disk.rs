//! Root folders on disks: the user's first one, and the one that holds an image.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};

use super::{PATIENCE, lacking};
use crate::spec::wire::IMAGE_SERIAL;

/// Where Linux lists block devices.
const LIST: &str = "/sys/block";
/// The file systems that a root disk may have; those that the kernel knows are tried.
const KINDS: [&str; 6] = ["ext4", "xfs", "btrfs", "f2fs", "erofs", "squashfs"];

/// Mounts the image at `at`, read-only.
///
/// # Errors
/// There is no such disk, or the kernel lacks its file system.
pub(super) fn mount_image(at: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    let device = loop {
        if let Some(name) = image() {
            break format!("/dev/{name}");
        }
        if start.elapsed() > PATIENCE {
            bail!("no disk with the image: the kernel needs CONFIG_VIRTIO_BLK and CONFIG_VIRTIO_MMIO");
        }
        sleep(Duration::from_micros(200));
    };
    let mounted = mount(Some(device.as_str()), at, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>);
    mounted.map_err(|error| lacking("erofs", error))
}

/// The name of the disk that has the image's serial number. The user's disks may have any, but come first.
fn image() -> Option<String> {
    let names = fs::read_dir(LIST).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let has_serial = |name: &String| {
        fs::read_to_string(Path::new(LIST).join(name).join("serial"))
            .is_ok_and(|serial| serial.trim_end() == IMAGE_SERIAL)
    };
    // By their lengths first: vdaa comes after vdz.
    names.filter(has_serial).max_by_key(|name| (name.len(), name.clone()))
}

/// Mounts the first disk, or the first of its partitions that has a file system, at `at`.
///
/// # Errors
/// There is no disk, or none of its file systems is one that the kernel knows.
pub(super) fn mount_first(at: &str, readonly: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !Path::new("/dev/vda").exists() {
        if start.elapsed() > PATIENCE {
            bail!("no disk /dev/vda: the kernel needs CONFIG_VIRTIO_BLK");
        }
        sleep(Duration::from_millis(1));
    }
    let known =
        fs::read_to_string("/proc/filesystems").context("cannot read which file systems there are")?;
    let kinds: Vec<&str> = known.lines().filter_map(|line| line.strip_prefix('\t')).collect();
    let kinds = KINDS.iter().filter(|kind| kinds.contains(kind));
    let partitions = (1..=16).map(|number| format!("/dev/vda{number}"));
    let disks = std::iter::once("/dev/vda".to_owned()).chain(partitions.filter(|it| Path::new(it).exists()));
    let flags = if readonly { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    for disk in disks {
        for kind in kinds.clone() {
            if mount(Some(disk.as_str()), at, Some(*kind), flags, None::<&str>).is_ok() {
                return Ok(());
            }
        }
    }
    bail!("the first disk has no file system that this kernel knows of: {}", KINDS.join(", "))
}
