//! Groups without a name of the user's, whose kite was killed by SIGKILL before it removed them. The next kite does.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Folder, Name, SUPERVISOR};

/// Removes groups that are empty, not locked, and named after a process that has ended. What cannot be removed stays.
pub fn sweep(parent: &Folder) {
    let names = fs::read_dir(parent.path()).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()) {
        let whose = name.strip_suffix(SUPERVISOR).unwrap_or(&name);
        let Some(process) = Name::process(whose) else { continue };
        let gone = kill(Pid::from_raw(process), None) == Err(Errno::ESRCH);
        if gone
            && let Ok(folder) = parent.folder(Path::new(&name))
            && folder.lock().is_ok()
        {
            let _it_is_in_use = parent.remove(&name);
        }
    }
}
