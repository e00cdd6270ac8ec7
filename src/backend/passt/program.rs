//! passt's program: where it is, and how it is started with nothing of kite's but what it needs.
#![expect(unsafe_code, reason = "descriptors are closed between fork and exec")]

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, eaccess};

const NAME: &str = "passt";
/// Where programs are where the environment does not say it.
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The program by the environment's `PATH`; none if it is not installed.
pub fn find() -> Option<PathBuf> {
    find_in(&env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into()))
}

fn find_in(path: &OsString) -> Option<PathBuf> {
    // An empty entry is the folder that kite was started in: that one may be anybody's.
    let folders = env::split_paths(path).filter(|folder| folder.is_absolute());
    folders
        .map(|folder| folder.join(NAME))
        .find(|file| file.is_file() && eaccess(file, AccessFlags::X_OK).is_ok())
}

/// Its command, which has no environment, no input and output but standard error, and no descriptor but `file`.
pub(super) fn command(program: &Path, file: BorrowedFd<'_>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Of its own, so that a key that interrupts kite doesn't end it first.
    command.process_group(0);
    let file = file.as_raw_fd();
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(RawFd::MAX, |(soft, _)| soft.min(1 << 20) as RawFd);
    // SAFETY: between fork and exec the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe { command.pre_exec(move || keep_only(file, most)) };
    command
}

/// Has the next program get standard streams and `file`, and none of what its parent has left open.
fn keep_only(file: RawFd, most: RawFd) -> io::Result<()> {
    const FIRST: RawFd = 3;
    // SAFETY: takes no pointer, and closes nothing in this process.
    let all =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if all != 0 {
        // Before Linux 5.11. What is not open is not there to be closed.
        // SAFETY: takes no pointer, and closes nothing in this process.
        (FIRST..most).for_each(|file| unsafe { _ = libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC) });
    }
    // SAFETY: takes no pointer.
    match unsafe { libc::fcntl(file, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn passt_gets_a_clean_environment_and_no_descriptor_but_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(NAME);
        let script = "#!/bin/sh\ncat /proc/$$/environ >$1/environ; ls -l /proc/$$/fd >$1/files\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let [its, leaked] = ["its", "leaked"].map(|name| fs::File::create(folder.path().join(name)).unwrap());
        fcntl(&leaked, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut command = command(&program, its.as_fd());
        let done = command.arg(folder.path()).spawn().unwrap().wait_with_output().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(fs::read_to_string(folder.path().join("environ")).unwrap(), "");
        let files = fs::read_to_string(folder.path().join("files")).unwrap();
        assert!(files.contains("/its\n"), "{files}");
        assert!(!files.contains("/leaked"), "{files}");
    }

    #[test]
    fn passt_is_found_where_it_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let [none, text, program] = ["none", "text", "program"].map(|name| folder.path().join(name));
        for (folder, mode) in [(&none, 0), (&text, 0o644), (&program, 0o755)] {
            fs::create_dir(folder).unwrap();
            if mode != 0 {
                fs::write(folder.join(NAME), "").unwrap();
                fs::set_permissions(folder.join(NAME), fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        let path = |folders: &[&Path]| env::join_paths(folders).unwrap();
        assert_eq!(find_in(&path(&[&none, &text, &program])), Some(program.join(NAME)));
        assert_eq!(find_in(&path(&[&none, &text])), None);
        assert_eq!(find_in(&OsString::new()), None);
    }
}
