//! The namespaces of a process beside our own (namespaces(7), `/proc/PID/ns`).

use std::io;
use std::path::Path;

use serde::Serialize;

use super::text;

/// All kinds, those first that a jail has of its own.
const KINDS: [&str; 8] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Namespace {
    /// Its kind.
    pub kind: &'static str,
    /// The process's.
    pub id: u64,
    /// That of the process that looks, the host's.
    pub host: Option<u64>,
    /// Whether they differ.
    pub own: bool,
}

/// The namespaces of a process, of the kinds that this kernel has.
///
/// # Errors
/// They may not be looked at.
pub fn of(process: &Path) -> io::Result<Vec<Namespace>> {
    let mut found = Vec::new();
    for kind in KINDS {
        let id = match id(process, kind) {
            Ok(Some(id)) => id,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let host = self::id(Path::new("/proc/self"), kind).ok().flatten();
        found.push(Namespace { kind, id, host, own: host != Some(id) });
    }
    Ok(found)
}

fn id(process: &Path, kind: &str) -> io::Result<Option<u64>> {
    Ok(parse(&text::link(process.join("ns").join(kind))?, kind))
}

/// `user:[4026531837]`.
pub(super) fn parse(target: &str, kind: &str) -> Option<u64> {
    target.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_a_number() {
        assert_eq!(parse("user:[4026531837]", "user"), Some(4_026_531_837));
        for target in
            ["", "user", "user:[]", "user:[x]", "mnt:[1]", "user:[1] ", "user:[99999999999999999999]"]
        {
            assert_eq!(parse(target, "user"), None, "{target:?}");
        }
    }

    #[test]
    fn our_own_namespaces_are_the_host_s() {
        let ours = of(Path::new("/proc/self")).unwrap();
        assert!(ours.len() >= 6 && ours.iter().all(|it| !it.own), "{ours:?}");
        assert!(of(Path::new("/nowhere")).unwrap().is_empty());
    }
}
