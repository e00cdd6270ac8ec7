//! Disks: a whole system that writes its own, data written and read back in many ways, and a disk that forgets.

use std::fs::{self, File};

use anyhow::{Context, Result, bail};

use super::{Fixture, finish, noise, stats, watched};
use crate::debian;
use crate::host;
use crate::machine::{Access, Machine, Net, Vmm};

/// The size of a disk for data, in bytes.
const SIZE: u64 = 128 << 20;
/// Writes with checksums and reads back, at random and in order, with flushes between; discards and zeroes what was
/// there, and looks.
const VERIFY: &str = r#"
set -e
check() {
    name=$1; shift
    fio --name="$name" --filename=/dev/vdb --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
        --output-format=terse "$@" >/tmp/out || { cat /tmp/out; exit 1; }
    echo "guest: $name is right"
}
check random --rw=randwrite --bs=4k --size=4M --iodepth=32 --fsync=64
check sizes --rw=randwrite --bsrange=512-256k --blockalign=512 --size=16M --iodepth=16
check order --rw=write --bs=1M --size=32M --iodepth=8 --fdatasync=16
check mixed --rw=randrw --bs=8k --size=8M --iodepth=32
check buffered --rw=randwrite --bs=4k --size=4M --direct=0 --end_fsync=1
zero() { cmp -n "$2" -i "$1":0 /dev/vdb /dev/zero; }
head -c 32M /dev/urandom >/dev/vdb; sync
blkdiscard --offset 1M --length 8M /dev/vdb
zero 1048576 8388608
echo 'guest: what was discarded is gone'
blkdiscard --zeroout --offset 16M --length 8M /dev/vdb
zero 16777216 8388608
echo 'guest: what was zeroed is zero'
"#;
/// Writes to a disk that forgets, and reads it.
const SCRIBBLE: &str = r#"
head -c 24M /dev/urandom >/tmp/noise
dd if=/tmp/noise of=/dev/vdc bs=64k conv=fsync,notrunc status=none
blockdev --flushbufs /dev/vdc
cmp -n 25165824 /tmp/noise /dev/vdc
blkdiscard --offset 32M --length 8M /dev/vdc || true
echo 'guest: the disk that forgets is read back'
"#;

/// A whole Debian boots to its login prompt, finds its network, and leaves a clean file system behind.
pub fn debian(fixture: &Fixture, cpus: u32) -> Result<String> {
    let disk = fixture.file("debian.img");
    if !disk.exists() {
        debian::copy(&fixture.debian.disk(), &disk)?;
    }
    let _wire = super::Wire::new(fixture.user)?;
    let has_net = fixture.vmm != Vmm::Qemu("threads") && host::program("passt").is_some();
    let nets = if has_net { vec![Net::User] } else { Vec::new() };
    let mut machine = debian::machine(&fixture.debian, &disk, Access::Write, cpus, nets);
    machine.stats = matches!(fixture.vmm, Vmm::Kite(_)).then(|| fixture.file("stats.json"));
    let visit = debian::visit(&machine, &fixture.vmm, fixture.shown)?;
    debian::check(&disk)?;
    if visit.cpus != cpus.to_string() {
        bail!("{} processors instead of {cpus}", visit.cpus);
    }
    if has_net && visit.addresses.is_empty() {
        bail!("it found no network");
    }
    if !visit.failed.is_empty() {
        bail!("units failed: {}", visit.failed);
    }
    let told = machine.stats.as_deref().map(stats::compare).transpose()?.unwrap_or_default();
    Ok(format!("prompt after {:.1} s, {}; {told}", visit.prompt.as_secs_f64(), visit.addresses))
}

/// What is written is what is read; and of a disk that forgets, the file is what it was.
pub fn verified(fixture: &Fixture, cpus: u32) -> Result<String> {
    verify(fixture, Machine { cpus, ..fixture.machine(&format!("{VERIFY}{SCRIBBLE}"))? })
}

/// The same on a PCI bus.
pub fn verified_on_pci(fixture: &Fixture) -> Result<String> {
    verify(fixture, Machine { cpus: 2, ..fixture.machine_on_pci(&format!("{VERIFY}{SCRIBBLE}"))? })
}

fn verify(fixture: &Fixture, mut machine: Machine) -> Result<String> {
    let (disk, kept) = (fixture.file("data.img"), fixture.file("kept.img"));
    File::create(&disk).and_then(|file| file.set_len(SIZE)).context("making a disk")?;
    let before = noise(&kept, 48 << 20)?;
    let listing = || -> Result<usize> { Ok(fs::read_dir(fixture.folder.path())?.count()) };
    machine.disks.push((disk.clone(), Access::Write));
    machine.disks.push((kept.clone(), Access::Ephemeral));
    let files = listing()?;
    watched(fixture.start(&machine)?, finish)?;
    if fs::read(&kept).context("reading the disk again")? != before {
        bail!("the file of a disk that forgets has changed");
    }
    if listing()? != files {
        bail!("something was left behind in the folder");
    }
    for disk in [disk, kept] {
        fs::remove_file(&disk).context("removing a disk")?;
    }
    Ok(String::new())
}
