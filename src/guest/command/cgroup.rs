//! The command's cgroup, if it is not root's: one that its user may divide further (cgroup v2, "Delegation").

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use super::user::User;

/// The root of the hierarchy, where root's commands are: nothing limits what they make there.
const ROOT: &str = "/sys/fs/cgroup";
/// The group of other users' commands.
const GROUP: &str = "/sys/fs/cgroup/command";
/// The files that are given away with a group.
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

/// Makes a group that belongs to the user, with every controller that there is; the file to which its processes are written.
///
/// # Errors
/// The kernel has no cgroups of version 2.
pub(super) fn delegate(user: &User) -> io::Result<Option<File>> {
    if user.uid == 0 {
        return Ok(None);
    }
    let root = Path::new(ROOT);
    for controller in fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
        // Some want more than there is, as that of real-time processes does.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    let group = Path::new(GROUP);
    DirBuilder::new().mode(0o755).create(group)?;
    let owner = (Some(user.uid), Some(user.gid));
    chown(group, owner.0, owner.1)?;
    DELEGATED.iter().try_for_each(|file| chown(group.join(file), owner.0, owner.1))?;
    File::options().write(true).open(group.join("cgroup.procs")).map(Some)
}
