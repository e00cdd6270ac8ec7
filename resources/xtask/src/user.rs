//! An ordinary user whose only right is to use KVM, by a group: what runs as they do, and what they need to reach. Whatever
//! is changed for them is in a mount namespace of this process's own; the host's device and folders stay as they are.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{AccessFlags, Gid, Uid, access, setgid, setgroups, setuid};
use tempfile::TempDir;

use crate::host;

/// Their number and their own group's, which no distribution gives to anybody.
pub const USER: u32 = 60_999;
/// The group that may use KVM.
pub const GROUP: u32 = 60_998;
const KVM: &str = "/dev/kvm";
/// What the names of tests begin with that run as they do.
pub const MARK: &str = "user/";
/// What a login sets.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a mount namespace for this process, which is root's and has one thread, in which the user may use KVM and reaches
/// this tree.
///
/// # Errors
/// The kernel does not let it.
fn prepare() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("parting mounts from the host's")?;
    give_kvm().context("giving /dev/kvm to a group")?;
    let tree = fs::canonicalize(host::root()).context("finding the source tree")?;
    for folder in [tree, host::targets()?] {
        reach(&folder).with_context(|| format!("opening the way to {}", folder.display()))?;
    }
    Ok(())
}

/// Puts another node of the same device in the place of the host's.
fn give_kvm() -> Result<()> {
    let device = fs::metadata(KVM)?.rdev();
    // A file system that certainly has devices, out of sight as soon as the node is where it belongs.
    let folder = tempfile::tempdir()?;
    mount(Some("kvm"), folder.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let node = folder.path().join("kvm");
    mknod(&node, SFlag::S_IFCHR, Mode::empty(), device).context("making a device node")?;
    chown(&node, None, Some(GROUP))?;
    fs::set_permissions(&node, Permissions::from_mode(0o660))?;
    bind(&node, Path::new(KVM))?;
    umount2(folder.path(), MntFlags::MNT_DETACH)?;
    OpenOptions::new().read(true).write(true).open(KVM).context("opening it")?;
    Ok(())
}

/// Lets everybody go to a folder: if one above is closed, what is in its place has nothing else in it.
fn reach(path: &Path) -> Result<()> {
    let above: Vec<_> = path.ancestors().skip(1).collect();
    for folder in above.into_iter().rev() {
        if fs::metadata(folder)?.mode() & 0o1 == 0 {
            let (kept, here) = (File::open(path)?, std::env::current_dir()?);
            mount(Some("way"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
            fs::create_dir_all(path)?;
            bind(Path::new(&format!("/proc/self/fd/{}", kept.as_raw_fd())), path)?;
            // The way to where we are is another now, if there still is one.
            std::env::set_current_dir(here).or_else(|_| std::env::set_current_dir(path))?;
            break;
        }
    }
    Ok(())
}

fn bind(what: &Path, at: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(what), at, None::<&str>, flags, None::<&str>)
}

/// Becomes that user and then this command, in surroundings as a login makes them.
///
/// # Errors
/// It is not for this process to become somebody else, or there is no such command.
pub fn run(command: &[OsString]) -> Result<Infallible> {
    let (name, arguments) = command.split_first().context("no command")?;
    prepare()?;
    setgroups(&[Gid::from_raw(GROUP)])
        .and_then(|()| setgid(Gid::from_raw(USER)))
        .and_then(|()| setuid(Uid::from_raw(USER)))
        .context("becoming an ordinary user")?;
    OpenOptions::new().read(true).write(true).open(KVM).context("opening /dev/kvm as an ordinary user")?;
    let home = std::env::temp_dir();
    access(&home, AccessFlags::W_OK | AccessFlags::X_OK)
        .with_context(|| format!("using {} as an ordinary user", home.display()))?;
    let mut command = Command::new(name);
    command.args(arguments).env("PATH", PATH).env("HOME", home);
    Err(command.exec()).with_context(|| format!("running {} as an ordinary user", name.display()))
}

/// A folder of theirs.
///
/// # Errors
/// It cannot be made.
pub fn folder() -> Result<TempDir> {
    let folder = tempfile::tempdir().context("making a folder")?;
    chown(folder.path(), Some(USER), Some(USER)).context("giving a folder away")?;
    Ok(folder)
}

/// A program that is `kite` run by them, to whom all that is in `folder` is given before; it is in there, too. Prepares
/// this process for it.
///
/// # Errors
/// As [`prepare`]; or it cannot be written.
pub fn program(kite: &Path, folder: &Path) -> Result<PathBuf> {
    prepare()?;
    let path = folder.join("kite-as-user");
    let (kite, folder) = (quoted(kite)?, quoted(folder)?);
    let script = format!(
        "#!/bin/sh\nchown -R -h {USER}:{USER} {folder} || exit 125\nexport PATH={PATH} HOME={folder}\n\
         exec setpriv --reuid {USER} --regid {USER} --groups {GROUP} --inh-caps=-all -- {kite} \"$@\"\n"
    );
    fs::write(&path, script)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// A path as a word of the shell's.
fn quoted(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(path) => Ok(format!("'{}'", path.replace('\'', "'\\''"))),
        None => bail!("{} is not UTF-8", path.display()),
    }
}

/// Whether guests are run by root, here or in the lab, and so can be by somebody else, too.
pub fn is_another() -> bool {
    nix::unistd::geteuid().is_root() || host::hardware_kvm().is_err()
}
