//! Files of `/proc/PID` (proc(5)), read with a bound and taken as untrusted text.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// A file's text; what is not Unicode is replaced.
///
/// # Errors
/// It cannot be read.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a link leads, as text.
///
/// # Errors
/// It cannot be read.
pub fn link(path: impl AsRef<Path>) -> io::Result<String> {
    fs::read_link(path).map(|target| String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned())
}

/// What stands behind `key:` on a line of its own.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// The names in a folder that are numbers, in order: processes, threads, descriptors.
///
/// # Errors
/// The folder cannot be read.
pub fn numbers(path: impl AsRef<Path>) -> io::Result<Vec<u32>> {
    let names = fs::read_dir(path)?.flatten();
    let mut numbers: Vec<u32> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Seccomp_filters:\t3\nSeccomp:\t2\nName:\ta: b\n:\n";
        assert_eq!(field(text, "Seccomp"), Some("2"));
        assert_eq!(field(text, "Name"), Some("a: b"));
        assert_eq!(field(text, "Sec"), None);
        assert_eq!(field("", "Name"), None);
    }

    #[test]
    fn only_numbers_are_processes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10", "9", "self", "-1", "+3", "99999999999"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(numbers(folder.path()).unwrap(), [3, 9, 10]);
        assert!(numbers(folder.path().join("none")).is_err());
    }
}
