//! The sandbox around a machine whose guest is Linux: what it has to hold, and who may build it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, chown};

use super::Ground;
use super::command::{ended, kite};
use super::kernel;

/// An ordinary user, whose only right is to use KVM.
const USER: u32 = 1000;

/// A command on the host's files and on a folder that may be written, locked in as all of these are, as an ordinary user.
pub fn user(ground: &Ground, name: &str) -> Result<String> {
    let device = fs::metadata("/dev/kvm").context("looking at /dev/kvm")?;
    chown("/dev/kvm", None, Some(Gid::from_raw(USER))).context("giving /dev/kvm to a group")?;
    fs::set_permissions("/dev/kvm", Permissions::from_mode(0o660)).context("letting a group use /dev/kvm")?;
    let result = as_user(ground, name);
    chown("/dev/kvm", Some(Uid::from_raw(device.uid())), Some(Gid::from_raw(device.gid())))
        .context("giving /dev/kvm back")?;
    fs::set_permissions("/dev/kvm", device.permissions()).context("giving /dev/kvm back")?;
    result
}

fn as_user(ground: &Ground, name: &str) -> Result<String> {
    let share = ground.file("jail-share");
    fs::create_dir(&share).context("making a folder")?;
    chown(&share, Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER))).context("giving a folder away")?;
    reachable(&share)?;
    let mut command = kite(ground, &kernel(name)?)?;
    let mut shared = share.clone().into_os_string();
    shared.push(":/mnt:rw");
    command.arg("--share").arg(shared).current_dir("/");
    let script = "id -u; cat >/mnt/made; test -r /etc/hostname && echo root; \
        touch /mnt/../escaped 2>/dev/null; cat /mnt/made >&2";
    command.args(["--", "sh", "-c", script]).uid(USER).gid(USER);
    let ended = ended(command, b"through the guest\n")?;
    ensure!(
        ended.code == Some(0) && ended.stdout == b"1000\nroot\n" && ended.stderr == "through the guest\n",
        "{ended:#?}"
    );
    let made = share.join("made");
    let text = fs::read_to_string(&made).context("reading what the guest wrote")?;
    ensure!(text == "through the guest\n", "the guest wrote {text:?}");
    ensure!(fs::metadata(&made).is_ok_and(|made| made.uid() == USER), "the file is somebody else's");
    ensure!(!share.with_file_name("escaped").exists(), "a file outside of the share");
    Ok(String::new())
}

/// Lets others go through the folders above.
fn reachable(path: &Path) -> Result<()> {
    for folder in path.ancestors().skip(1) {
        let metadata = fs::metadata(folder).context("looking at a folder")?;
        let mode = metadata.permissions().mode();
        if mode & 0o1 == 0 {
            fs::set_permissions(folder, Permissions::from_mode(mode | 0o11)).context("opening a folder")?;
        }
    }
    Ok(())
}
