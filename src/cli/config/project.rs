//! What a project's `kite.toml` may set. It may be another person's: neither a network nor anything of this host's that a
//! guest could reach, write or use up is its to give, nor may it loosen what the user's own file sets.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::spec::device::ShareSpec;

/// The options that say what a guest is and does.
const ALLOWED: &[&str] = &[
    "append",
    "clear-env",
    "cmdline",
    "console",
    "cpus",
    "cwd",
    "env",
    "fail-on-ktap",
    "force",
    "idle-timeout",
    "initrd",
    "kernel",
    "memory",
    "module",
    "modules",
    "no-acpi",
    "no-balloon",
    "no-rng",
    "on-reboot",
    "root",
    "screen",
    "share",
    "stats",
    "stats-interval",
    "test-devices",
    "timeout",
    "transport",
    // As anybody, a guest can do what its kernel can.
    "user",
    "verbose",
];
/// Where the system has modules, which all may read.
const MODULES: [&str; 2] = ["/lib/modules", "/usr/lib/modules"];
const WHERE_ELSE: &str = "it belongs on the command line, or into ~/.config/kite/config.toml";

/// Refuses what a project in `folder` may not set; `words` are what it sets, as on a command line.
pub(super) fn check(name: &str, words: &[OsString], folder: &Path) -> Result<(), String> {
    if !ALLOWED.contains(&name) {
        let why = match name {
            "net" => "it gives the guest a network",
            "disk" | "port" => "it opens files of this host",
            "junit" | "kernel-log" | "screenshot-on-failure" | "trace" => "it writes a file of this host",
            "image" | "insecure-registry" | "pull" => "it gets files from elsewhere",
            "novnc" | "vnc" | "vnc-password-file" => "it lets others use the guest",
            "sandbox" => "it may loosen the sandbox",
            _ => "it is about more than the guest",
        };
        return Err(refused(name, why));
    }
    let values = words.iter().filter_map(|word| word.to_str()?.split_once('='));
    let texts: Vec<&str> = values.map(|(_, text)| text).collect();
    match name {
        "stats" if !texts.is_empty() => Err(refused(name, "it writes a file of this host; true is allowed")),
        "clear-env" if words.is_empty() => Err(refused(name, "it would pass on the environment")),
        "env" if texts.iter().any(|text| !text.contains('=')) => {
            Err(refused(name, "it passes on a variable of this host; NAME=VALUE is allowed"))
        }
        "share" => texts.iter().try_for_each(|text| {
            let share = ShareSpec::parse(text)?;
            match share.writable {
                true => {
                    Err(refused(name, "the guest could write to this host; a read-only share is allowed"))
                }
                false => within(name, &share.folder, folder),
            }
        }),
        "root" => texts
            .iter()
            .filter(|text| **text != "disk")
            .try_for_each(|text| within(name, Path::new(text), folder)),
        "initrd" => texts.iter().try_for_each(|text| within(name, Path::new(text), folder)),
        "modules" => texts.iter().try_for_each(|text| {
            let is_system = resolved(Path::new(text), folder).is_some_and(|path| {
                MODULES.iter().any(|modules| path.starts_with(modules) && path != Path::new(modules))
            });
            if is_system { Ok(()) } else { within(name, Path::new(text), folder) }
        }),
        _ => Ok(()),
    }
}

fn refused(name: &str, why: &str) -> String {
    format!("'{name}' is not a project's to set, as {why}; {WHERE_ELSE}")
}

fn resolved(path: &Path, folder: &Path) -> Option<PathBuf> {
    folder.join(path).canonicalize().ok()
}

/// Refuses a path that leads out of the project's folder. One that leads nowhere is refused later, as anybody's.
fn within(name: &str, path: &Path, folder: &Path) -> Result<(), String> {
    let folder_itself = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
    match resolved(path, folder).is_none_or(|path| path.starts_with(folder_itself)) {
        true => Ok(()),
        false => Err(refused(name, "it leads out of the folder of kite.toml")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(folder: &Path, line: &str) -> Result<(), String> {
        let table: toml::Table = toml::from_str(line).unwrap();
        let word = |name: &str, value: &toml::Value| match value {
            toml::Value::String(text) => Some(format!("--{name}={text}").into()),
            toml::Value::Integer(number) => Some(format!("--{name}={number}").into()),
            value => (value.as_bool() == Some(true)).then(|| format!("--{name}").into()),
        };
        table.iter().try_for_each(|(name, value)| {
            let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            let words: Vec<_> = list.iter().filter_map(|value| word(name, value)).collect();
            check(name, &words, folder)
        })
    }

    #[test]
    fn a_project_says_what_a_guest_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        for line in [
            "memory = '2G'",
            "kernel = '/boot/vmlinuz'",
            "share = ['.', 'data:/mnt']",
            "root = 'data'",
            "root = 'disk'",
            "stats = true",
            "env = ['A=b', 'C=']",
            "clear-env = true",
            "user = 'root'",
            "modules = 'none/yet'",
        ] {
            assert_eq!(checked(folder.path(), line), Ok(()), "{line}");
        }
    }

    #[test]
    fn a_project_gives_a_guest_nothing_of_this_host() {
        let folder = tempfile::tempdir().unwrap();
        for link in ["link", "5"] {
            std::os::unix::fs::symlink("/etc", folder.path().join(link)).unwrap();
        }
        for (line, why) in [
            ("net = 'user'", "gives the guest a network"),
            ("disk = '/dev/sda'", "opens files"),
            ("port = 'a=/tmp/x'", "opens files"),
            ("junit = '../.bashrc'", "writes a file"),
            ("kernel-log = 'x'", "writes a file"),
            ("trace = 'x'", "writes a file"),
            ("stats = 'x'", "writes a file"),
            ("sandbox = 'none'", "loosen the sandbox"),
            ("cgroup = 'x'", "more than the guest"),
            ("limit = 'cpu=100'", "more than the guest"),
            ("tomorrows-option = true", "more than the guest"),
            ("share = '.:rw'", "could write"),
            ("share = ['.', '.:/mnt:rw']", "could write"),
            ("share = '/etc'", "leads out"),
            ("share = '..'", "leads out"),
            ("share = 'link'", "leads out"),
            ("share = 5", "leads out"),
            ("root = '/'", "leads out"),
            ("root = 'link'", "leads out"),
            ("initrd = '/etc/passwd'", "leads out"),
            ("modules = '/etc'", "leads out"),
            ("env = 'SECRET'", "a variable of this host"),
            ("clear-env = false", "pass on the environment"),
        ] {
            let error = checked(folder.path(), line).unwrap_err();
            assert!(error.contains(why) && error.contains("not a project's to set"), "{line}: {error}");
        }
    }
}
