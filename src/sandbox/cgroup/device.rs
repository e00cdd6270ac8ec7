//! The block device that a limit of I/O means: groups know whole disks only, by their numbers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, ensure};
use nix::sys::stat::{major, minor};

use super::Device;

/// The numbers of the whole disk, `MAJOR:MINOR`.
///
/// # Errors
/// There is no such file or device, or its file system is on none.
pub fn number(device: &Device) -> anyhow::Result<String> {
    let (major, minor) = match device {
        Device::Number(major, minor) => (u64::from(*major), u64::from(*minor)),
        Device::Path(path) => of_path(path)?,
    };
    let number = format!("{major}:{minor}");
    let folder = Path::new("/sys/dev/block").join(&number);
    ensure!(folder.exists(), "io: this host has no block device {number}");
    if !folder.join("partition").exists() {
        return Ok(number);
    }
    let disk = fs::canonicalize(&folder).ok().and_then(|folder| Some(folder.parent()?.join("dev")));
    let text = disk.and_then(|disk| fs::read_to_string(disk).ok());
    let text = text.with_context(|| format!("io: cannot find the disk of partition {number}"))?;
    Ok(text.trim().to_owned())
}

fn of_path(path: &Path) -> anyhow::Result<(u64, u64)> {
    let file = fs::metadata(path).with_context(|| format!("io: cannot look at {}", path.display()))?;
    let device = if file.file_type().is_block_device() { file.rdev() } else { file.dev() };
    // Major number 0 is for what is on no device: tmpfs, overlay, a network.
    ensure!(
        major(device) != 0,
        "io: {} is on no block device of its own: name one, such as io=/dev/sda:rbps=10M",
        path.display()
    );
    Ok((major(device), minor(device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_no_device_is_refused() {
        let error = number(&Device::Path("/proc/self".into())).unwrap_err().to_string();
        assert!(error.contains("/proc/self is on no block device"), "{error}");
        let error = number(&Device::Number(0, 4_000_000_000)).unwrap_err().to_string();
        assert!(error.contains("no block device 0:4000000000"), "{error}");
        assert!(number(&Device::Path("/nowhere".into())).is_err());
    }
}
