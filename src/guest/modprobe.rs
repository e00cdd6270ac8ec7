//! What the kernel runs to have a module loaded (`kernel.modprobe`, modprobe(8)), in a root folder that has no program for it:
//! this one.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use boot::modules::Modules;
use nix::sys::utsname::uname;

use super::modules::load_file;

/// The kernel's setting.
const SETTING: &str = "/proc/sys/kernel/modprobe";
/// The program of process 1, which no root folder has a name for: the kernel looks names up where process 1 does.
const PROGRAM: &str = "/proc/1/exe";
/// Where the modules of kernels are, by their versions.
const FOLDER: &str = "/lib/modules";

/// Has the kernel run this program for modules, unless the root folder has one of its own, with its own settings.
///
/// # Errors
/// The kernel has no such setting, as without modules, or cannot be asked for it.
pub(super) fn offer() -> io::Result<()> {
    let own = fs::read_to_string(SETTING)?;
    // An empty one is for a guest without modules.
    let own = own.trim_end();
    if own.is_empty() || Path::new(own).exists() { Ok(()) } else { fs::write(SETTING, PROGRAM) }
}

/// Whether this process was started for a module, with these words.
pub(super) fn is_it(mut words: impl Iterator<Item = OsString>) -> bool {
    std::process::id() != 1 && words.next().is_some_and(|program| program == PROGRAM)
}

/// Loads the modules that are named, with what they need. Options are those of modprobe(8) that the kernel gives, which ask for
/// silence.
pub(super) fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    match load(words.skip(1).filter_map(|word| word.into_string().ok()).filter(|word| !word.starts_with('-')))
    {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Whether there is a module for each of the names, and all are loaded.
fn load(names: impl Iterator<Item = String>) -> anyhow::Result<bool> {
    let kernel = uname().context("cannot read the kernel's name")?;
    let modules = Modules::open(&Path::new(FOLDER).join(kernel.release()))?;
    let mut are_all_there = true;
    for name in names {
        let files = modules.of_request(&name)?;
        are_all_there &= !files.is_empty();
        for file in files {
            load_file(&file.path)?;
        }
    }
    Ok(are_all_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> impl Iterator<Item = OsString> {
        words.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn only_what_the_kernel_starts_by_that_name_is_for_a_module() {
        assert!(is_it(words(&["/proc/1/exe", "-q", "--", "tun"])));
        for other in [&["/init"][..], &["kite", "/proc/1/exe"], &["/proc/self/exe"], &[]] {
            assert!(!is_it(words(other)), "{other:?}");
        }
    }

    #[test]
    fn a_module_that_is_not_there_is_a_failure() {
        let ended = run(words(&["/proc/1/exe", "-q", "--", "no_such_module"]));
        assert_eq!(format!("{ended:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
