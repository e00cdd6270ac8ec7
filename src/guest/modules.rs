//! Loading the kernel modules that came with the guest (init_module(2), `CONFIG_MODULE_COMPRESS`).

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use boot::initramfs::{MANIFEST, MODULES};
use boot::modules::zstd;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module, init_module};
use ruzstd::decoding::StreamingDecoder;

use super::say;

/// What a module may measure once it is decompressed.
const IMAGE_MAX: u64 = 1 << 28;
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

/// Loads the module of a file.
///
/// # Errors
/// It cannot be read or unpacked, or the kernel refuses it.
pub(super) fn load_file(path: &Path) -> io::Result<()> {
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
        let mut image = Vec::with_capacity(compressed.len().saturating_mul(4));
        match self {
            // It takes as much memory as it has unpacked, whatever it is asked for.
            Self::Xz => unpack(XzReader::new(compressed.as_slice(), true), &mut image, max)?,
            Self::Zstd => unpack_zstd(&mut compressed, &mut image, max)?,
            Self::Gzip => unpack_gzip(&compressed, &mut image, max)?,
        }
        Ok(image)
    }
}

/// Appends what `decoder` gives to `image`, which has at most `max` bytes then.
fn unpack(mut decoder: impl Read, image: &mut Vec<u8>, max: u64) -> io::Result<()> {
    decoder.by_ref().take(max - image.len() as u64).read_to_end(image)?;
    match image.len() as u64 == max && decoder.read(&mut [0])? > 0 {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "decompressed module is too large")),
        false => Ok(()),
    }
}

/// A frame may ask for a window of some GiB, which the decoder would take at once, and the guest may not have. It needs none
/// larger than what it holds.
fn unpack_zstd(compressed: &mut [u8], image: &mut Vec<u8>, max: u64) -> io::Result<()> {
    let frames = zstd::frames(compressed).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
    for frame in frames {
        if let Some(at) = frame.window {
            compressed[at] = frame.enough(compressed[at]);
        }
        let source = &compressed[frame.range];
        let decoder = StreamingDecoder::new_with_max_window_size(source, 2 * IMAGE_MAX);
        unpack(decoder.map_err(io::Error::other)?, image, max)?;
    }
    Ok(())
}

/// Members one after the other; what follows them does not matter, as for gzip(1).
fn unpack_gzip(mut compressed: &[u8], image: &mut Vec<u8>, max: u64) -> io::Result<()> {
    while Compression::of(compressed) == Some(Compression::Gzip) {
        unpack(GzDecoder::new(&mut compressed), image, max)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // What the tools of that name make of `image()`.
    const XZ: &[u8] = b"\
        \xfd7zXZ\0\0\x01i\"\xde6\x02\0!\x01\x10\0\0\0\xa8p\x8e\x86\xe0\x03$\0#]\0?\x91E\x84iM\x8d\
        \xc5^&\x0e\xd5\xe0\xe5\x13\xbcnA\x14\xcc-_Pd\xb1}\xaf#\x8e]\xab\xe9=\xf0\0\0\0\x9c\xd0V\
        \xd3\0\x01;\xa5\x06\0\0\0\x89lD0>0\x0d\x8b\x02\0\0\0\0\x01YZ";
    /// By `xz -9`, which asks for a dictionary of 64 MiB.
    const XZ_9: &[u8] = b"\
        \xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x1c\x00\x00\x00\x10\xcf\x58\xcc\
        \xe0\x03\x24\x00\x23\x5d\x00\x3f\x91\x45\x84\x69\x4d\x8d\xc5\x5e\x26\x0e\xd5\xe0\xe5\x13\xbc\x6e\
        \x41\x14\xcc\x2d\x5f\x50\x64\xb1\x7d\xaf\x23\x8e\x5d\xab\xe9\x3d\xf0\x00\x00\x00\x9c\xd0\x56\xd3\
        \x00\x01\x3b\xa5\x06\x00\x00\x00\x89\x6c\x44\x30\x3e\x30\x0d\x8b\x02\x00\x00\x00\x00\x01\x59\x5a";
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
    fn a_window_larger_than_the_module_takes_no_memory() {
        assert_eq!(decompress(XZ_9, IMAGE_MAX).unwrap(), image());
        // Windows of 128 MiB, 2 GiB and 1 TiB, as of `zstd --long`.
        for window in [0x88, 0xa8, 0xf0] {
            let mut bytes = ZSTD.to_vec();
            bytes[5] = window;
            assert_eq!(decompress(&bytes, IMAGE_MAX).unwrap(), image());
        }
    }

    #[test]
    fn parts_one_after_the_other_are_one_module() {
        for bytes in [XZ, ZSTD, GZIP] {
            assert_eq!(decompress(&[bytes, bytes].concat(), IMAGE_MAX).unwrap(), [image(), image()].concat());
        }
        assert_eq!(decompress(&[GZIP, &[0; 100], b"more"].concat(), IMAGE_MAX).unwrap(), image());
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
