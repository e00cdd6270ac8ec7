//! Files of the root folder that this program reads: they may be anything.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// What a regular file holds.
///
/// # Errors
/// It cannot be read, is too long, or is a pipe, a device or a folder, on which nothing waits.
pub(super) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let [file, pipe, long] = ["file", "pipe", "long"].map(|name| folder.path().join(name));
        std::fs::write(&file, "text").unwrap();
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        File::create(&long).unwrap().set_len(LONGEST + 1).unwrap();
        assert_eq!(read(&file).unwrap(), b"text");
        for other in [pipe.as_path(), &long, Path::new("/dev/zero"), folder.path()] {
            assert!(read(other).is_err(), "{}", other.display());
        }
    }
}
