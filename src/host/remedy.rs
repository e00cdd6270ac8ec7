//! What helps against what any step may lack of the host: descriptors, processes, /proc, room for a file.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

/// What this process has of its host at its start. Later it may be locked in, where it may not ask and sees no /proc.
pub struct Surroundings {
    proc: bool,
    files: Option<u64>,
    space: Option<u64>,
}

impl Surroundings {
    /// As they are now.
    pub fn now() -> Self {
        let proc = fs::symlink_metadata("/proc/self").is_ok();
        Self { proc, files: limit(Resource::RLIMIT_NOFILE), space: limit(Resource::RLIMIT_AS) }
    }

    /// An error's message, with what helps if that is known and not said yet.
    pub fn with_cure(&self, message: &str) -> String {
        match cure(message, self.proc, self.files, self.space) {
            Some(cure) => format!("{message}; {cure}"),
            None => message.to_owned(),
        }
    }
}

/// A limit of this process, unless there is none.
fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft != u64::MAX)
}

/// What helps, by the host's own words for what it lacks: not every error has come here as a number.
fn cure(message: &str, proc: bool, files: Option<u64>, space: Option<u64>) -> Option<String> {
    let says = |text: &str| message.contains(text);
    if says("Too many open files in system") || says("File table overflow") {
        return Some("the host has as many open files as it may: sysctl -w fs.file-max=1000000".to_owned());
    }
    if says("Too many open files") && !says("ulimit") {
        let most = files.map_or_else(String::new, |files| format!(" {files}"));
        return Some(format!("kite may have{most} open files: raise that limit, as with ulimit -n 1024"));
    }
    if says("Cannot allocate memory") && space.is_some() && !says("ulimit") {
        return Some(
            "the address space is limited: raise that limit, as with ulimit -v unlimited".to_owned(),
        );
    }
    if says("start a") && says("Resource temporarily unavailable") && !says("--limit") {
        return Some("this user may have no more processes: raise that limit, as with ulimit -u".to_owned());
    }
    if says("File too large") && !says("ulimit") {
        return Some(
            "the size of files is limited: raise that limit, as with ulimit -f unlimited".to_owned(),
        );
    }
    if says("No such file or directory") && !proc && !says("proc proc") {
        return Some("there is no /proc here, which kite needs: mount -t proc proc /proc".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacks_comes_with_what_helps() {
        for (message, proc, files, helps) in [
            ("cannot make an eventfd: EMFILE: Too many open files", true, Some(64), "64 open files: raise"),
            ("x: Too many open files (os error 24)", true, None, "kite may have open files: raise"),
            ("x: Too many open files in system (os error 23)", true, Some(64), "fs.file-max"),
            ("cannot write x: File too large (os error 27)", true, None, "ulimit -f"),
            ("cannot map 64 MiB: Cannot allocate memory (os error 12)", true, None, "ulimit -v"),
            ("cannot start a thread: Resource temporarily unavailable", true, None, "ulimit -u"),
            ("cannot open kite's own executable: No such file or directory", false, None, "mount -t proc"),
        ] {
            let cure = cure(message, proc, files, Some(1 << 30)).unwrap_or_default();
            assert!(cure.contains(helps), "{message}: {cure}");
        }
        for message in [
            "cannot open x: No such file or directory",
            "cannot open x: Permission denied",
            "File too large: raise ulimit -f",
            "cannot map 64 MiB: Cannot allocate memory (os error 12)",
        ] {
            assert_eq!(cure(message, true, Some(64), None), None);
        }
    }
}
