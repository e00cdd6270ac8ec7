//! Loading the kernel modules that came with the guest (init_module(2), `CONFIG_MODULE_COMPRESS`).

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use boot::initramfs::{MANIFEST, MODULES};
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module, init_module};
use ruzstd::decoding::StreamingDecoder;

use super::say;

/// What a module may measure once it is decompressed.
const IMAGE_MAX: u64 = 1 << 28;
/// What a decompressor may keep of what it has written: distributions' modules ask for 2 MiB at most.
const WINDOW_MAX: u64 = 1 << 26;
const NO_PARAMETERS: &CStr = c"";

/// Loads the modules of the manifest in its order and returns their names. One that fails is reported, and the
/// guest goes on without it.
pub fn load() -> Vec<String> {
    let manifest = match fs::read_to_string(MANIFEST) {
        Ok(manifest) => manifest,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            say(format_args!("cannot read {MANIFEST}: {error}"));
            return Vec::new();
        }
    };
    let mut loaded = Vec::new();
    for file in manifest.lines() {
        let name = file.split_once(".ko").map_or(file, |(name, _)| name).replace('-', "_");
        match load_file(&Path::new(MODULES).join(file)) {
            Ok(()) => loaded.push(name),
            Err(error) => say(format_args!("cannot load kernel module {name}: {error}")),
        }
    }
    loaded
}

fn load_file(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut magic = [0; 4];
    // A file too short for a magic number is the kernel's to refuse.
    let read = file.read_at(&mut magic, 0)?;
    let result = match Compression::of(&magic[..read]) {
        None => finit_module(&file, NO_PARAMETERS, ModuleInitFlags::empty()),
        Some(compression) => init_module(&compression.image(&file, IMAGE_MAX)?, NO_PARAMETERS),
    };
    match result {
        // Loaded already or built in: there it is.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How a module's file is compressed, by its content: a name can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Xz,
    Zstd,
    Gzip,
}

impl Compression {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xfd, b'7', b'z', b'X', ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            _ => None,
        }
    }

    /// The decompressed bytes, at most `max`.
    fn image(self, mut file: impl Read, max: u64) -> io::Result<Vec<u8>> {
        let mut compressed = Vec::new();
        file.by_ref().take(max).read_to_end(&mut compressed)?;
        let source = compressed.as_slice();
        let mut decoder: Box<dyn Read> = match self {
            Self::Xz => Box::new(XzReader::new_mem_limit(source, true, (WINDOW_MAX >> 10) as u32)),
            Self::Zstd => Box::new(
                StreamingDecoder::new_with_max_window_size(source, WINDOW_MAX).map_err(io::Error::other)?,
            ),
            Self::Gzip => Box::new(MultiGzDecoder::new(source)),
        };
        let mut image = Vec::with_capacity(compressed.len().saturating_mul(4));
        decoder.by_ref().take(max).read_to_end(&mut image)?;
        if image.len() as u64 == max && decoder.read(&mut [0])? > 0 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "decompressed module is too large"));
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What the tools of that name make of `image()`.
    const XZ: &[u8] = b"\
        \xfd7zXZ\0\0\x01i\"\xde6\x02\0!\x01\x10\0\0\0\xa8p\x8e\x86\xe0\x03$\0#]\0?\x91E\x84iM\x8d\
        \xc5^&\x0e\xd5\xe0\xe5\x13\xbcnA\x14\xcc-_Pd\xb1}\xaf#\x8e]\xab\xe9=\xf0\0\0\0\x9c\xd0V\
        \xd3\0\x01;\xa5\x06\0\0\0\x89lD0>0\x0d\x8b\x02\0\0\0\0\x01YZ";
    const ZSTD: &[u8] =
        b"(\xb5/\xfd\x04h\x05\x01\0\xc0\x7fELF kite loads modules.\x01\0(\xbcj\x8e\x01\"g\xfc<";
    const GZIP: &[u8] = b"\
        \x1f\x8b\x08\0\0\0\0\0\0\x03\xabw\xf5qS\xc8\xce,IU\xc8\xc9OL)V\xc8\xcdO)\xcdI-\xd6\x1b\x15\
        \x1b\x15\x1b\x15\x83\x8a\x01\0\x9c\xd0V\xd3%\x03\0\0";

    fn image() -> Vec<u8> {
        [&b"\x7fELF "[..], &b"kite loads modules. ".repeat(40)].concat()
    }

    fn decompress(bytes: &[u8], max: u64) -> io::Result<Vec<u8>> {
        Compression::of(bytes).expect("compressed").image(bytes, max)
    }

    #[test]
    fn every_compression_gives_back_the_module() {
        for bytes in [XZ, ZSTD, GZIP] {
            assert_eq!(decompress(bytes, IMAGE_MAX).unwrap(), image());
        }
    }

    #[test]
    fn a_plain_or_short_file_is_not_compressed() {
        for bytes in [image().as_slice(), b"", b"\x1f", b"\xfd7z", b"\x28\xb5\x2f"] {
            assert_eq!(Compression::of(bytes), None);
        }
    }

    #[test]
    fn a_module_may_be_as_large_as_the_limit_and_no_larger() {
        let len = image().len() as u64;
        for bytes in [XZ, ZSTD, GZIP] {
            assert_eq!(decompress(bytes, len).unwrap(), image());
            assert!(decompress(bytes, len - 1).is_err());
        }
    }

    #[test]
    fn broken_modules_are_errors() {
        for bytes in [XZ, ZSTD, GZIP] {
            for end in 4..bytes.len() {
                assert!(decompress(&bytes[..end], IMAGE_MAX).is_err(), "cut at {end}: {bytes:?}");
            }
            let flips = (4..bytes.len()).map(|at| {
                let mut broken = bytes.to_vec();
                broken[at] ^= 0xff;
                broken
            });
            // Any answer but a panic: not every byte is under a checksum.
            flips.for_each(|broken| drop(decompress(&broken, 1 << 20)));
        }
    }
}
