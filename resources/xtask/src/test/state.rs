//! A Linux guest that is saved and loaded, by a test of the library that is run where KVM can run Linux.

use std::ffi::OsString;

use anyhow::{Context, Result, ensure};

use super::native::Programs;
use crate::guest::job;
use crate::lab::Lab;
use crate::setup::Setup;

/// The program of the test, and its name.
const TEST: (&str, &str) =
    ("tiny", "state::a_linux_guest_goes_on_with_its_clock_disk_and_share_in_loaded_machines");
/// What the guest does for ever: it says how long it is up, and what its disk and its share have.
const JOB: &str = r#"
mount -t virtiofs share /mnt
number=0
while :; do
    number=$((number + 1))
    echo 3 > /proc/sys/vm/drop_caches
    sum=$(sha256sum /bin/bash) && file=$(cat /mnt/file) || exit 1
    head -c 16 /dev/hwrng > /dev/null || exit 2
    read -r up _ < /proc/uptime
    echo "tick $number $up ${sum%% *} $file"
done
"#;

/// Runs it on this host's KVM, or in the lab.
///
/// # Errors
/// Set-up fails, or the test.
pub fn run(setup: &mut Setup) -> Result<()> {
    let kernel = setup.kernel()?;
    let debian = setup.debian()?;
    let programs = Programs::built()?;
    let folder = tempfile::tempdir().context("making a folder")?;
    let initrd = folder.path().join("initrd");
    job::write_initrd(&kernel, JOB, "virtio_mmio", &initrd)?;
    let (program, name) = TEST;
    let set = |name: &str, path: &std::path::Path| OsString::from(format!("{name}={}", path.display()));
    let mut argv: Vec<OsString> = vec!["env".into(), set("STATE_KERNEL", &kernel.bz_image())];
    argv.extend([set("STATE_INITRD", &initrd), set("STATE_DISK", &debian.disk())]);
    argv.push(programs.test(program)?.into());
    argv.extend(["--exact", name].map(OsString::from));
    let said = Lab::captured(setup, &argv)?;
    ensure!(said.contains("test result: ok. 1 passed"), "{name} has not passed: {said}");
    Ok(())
}
