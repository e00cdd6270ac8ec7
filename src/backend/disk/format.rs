//! Files that are disks in another format than raw, or packed: refused by the bytes that they begin or end with.
//!
//! Nothing else is made of these bytes, which a guest may have written to a raw disk: no file is ever read as anything but
//! raw.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where a format's mark is.
#[derive(Clone, Copy)]
enum At {
    Start(u64),
    /// So many bytes in front of the end.
    End(u64),
}

/// What makes a raw disk of a file.
#[derive(Clone, Copy)]
enum Cure {
    /// qemu-img(1), which knows the format.
    Convert,
    /// A program that writes the unpacked file to standard output.
    Unpack(&'static str),
}

use At::{End, Start};
use Cure::{Convert, Unpack};

const FORMATS: &[(&str, At, &[u8], Cure)] = &[
    ("a qcow2 image", Start(0), b"QFI\xfb", Convert),
    ("a QED image", Start(0), b"QED\0", Convert),
    ("a VMDK image", Start(0), b"KDMV", Convert),
    ("a VMDK image", Start(0), b"COWD", Convert),
    ("the description of a VMDK image", Start(0), b"# Disk DescriptorFile", Convert),
    ("a VHDX image", Start(0), b"vhdxfile", Convert),
    ("a VHD image", Start(0), b"conectix", Convert),
    ("a VHD image", End(512), b"conectix", Convert),
    ("a VDI image", Start(64), &[0x7f, 0x10, 0xda, 0xbe], Convert),
    ("a Parallels image", Start(0), b"WithoutFreeSpace", Convert),
    ("a Parallels image", Start(0), b"WithouFreSpacExt", Convert),
    ("a Bochs image", Start(0), b"Bochs Virtual HD Image", Convert),
    ("a DMG image", End(512), b"koly\0\0\0\x04", Convert),
    ("a file packed by gzip", Start(0), &[0x1f, 0x8b, 8], Unpack("gzip -dc")),
    ("a file packed by xz", Start(0), b"\xfd7zXZ\0", Unpack("xz -dc")),
    ("a file packed by zstd", Start(0), &[0x28, 0xb5, 0x2f, 0xfd], Unpack("zstd -dc")),
    // What pzstd writes begins with a frame to be skipped.
    ("a file packed by zstd", Start(0), &[0x50, 0x2a, 0x4d, 0x18], Unpack("zstd -dc")),
    ("a file packed by bzip2", Start(4), &[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], Unpack("bzip2 -dc")),
    ("a file packed by lz4", Start(0), &[4, 0x22, 0x4d, 0x18], Unpack("lz4 -dc")),
    ("a file packed by lz4", Start(0), &[2, 0x21, 0x4c, 0x18], Unpack("lz4 -dc")),
    ("a file packed by lzop", Start(0), b"\x89LZO\0", Unpack("lzop -dc")),
    ("a zip archive", Start(0), b"PK\x03\x04", Unpack("unzip -p")),
    ("a 7z archive", Start(0), b"7z\xbc\xaf\x27\x1c", Unpack("7z x -so")),
];

/// Why a disk of this many bytes, at `path`, is probably not raw, and what to do; nothing if it shows nothing else.
///
/// # Errors
/// It cannot be read.
pub(super) fn refusal(file: &File, bytes: u64, path: &Path) -> io::Result<Option<String>> {
    for (name, at, mark, cure) in FORMATS {
        let place = match at {
            Start(offset) => Some(*offset),
            End(offset) => bytes.checked_sub(*offset),
        };
        let Some(place) = place.filter(|place| bytes.saturating_sub(*place) >= mark.len() as u64) else {
            continue;
        };
        let mut found = [0; 32];
        let found = &mut found[..mark.len()];
        file.read_exact_at(found, place)?;
        if found == *mark {
            return Ok(Some(described(name, *cure, path)));
        }
    }
    Ok(None)
}

fn described(name: &str, cure: Cure, path: &Path) -> String {
    let path = path.display();
    let command = match cure {
        Convert => format!("qemu-img convert -O raw '{path}' '{path}.raw'"),
        Unpack(program) => format!("{program} '{path}' >'{path}.raw'"),
    };
    format!(
        "it looks like {name}, which a guest would see as it is, and may destroy: make a raw disk of it by `{command}`, or \
         add 'raw' if it is one"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use crate::spec::disk::parse;

    /// The refusal of a file, and that with `raw` there is none, whatever else the guest may do.
    fn refused(path: &Path, cure: &str) -> String {
        for more in ["", ",readonly", ",ephemeral"] {
            let open = |raw: &str| parse(&format!("path={}{more}{raw}", path.display())).unwrap().open(0, 1);
            let error = format!("{:#}", open("").expect_err(&format!("{} is no raw disk", path.display())));
            assert!(error.contains(cure) && error.contains("add 'raw'"), "{error}");
            open(",raw").unwrap();
        }
        format!("{:#}", parse(path.to_str().unwrap()).unwrap().open(0, 1).unwrap_err())
    }

    fn ran(command: &mut Command) -> bool {
        command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    use super::*;

    #[test]
    fn an_image_of_any_format_of_qemus_is_refused_with_the_command_that_converts_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut made = 0;
        for (format, options, name) in [
            ("qcow2", None, "a qcow2 image"),
            ("qcow", None, "a qcow2 image"),
            ("qed", None, "a QED image"),
            ("vmdk", None, "a VMDK image"),
            ("vmdk", Some("subformat=streamOptimized"), "a VMDK image"),
            ("vmdk", Some("subformat=monolithicFlat"), "the description of a VMDK image"),
            ("vhdx", None, "a VHDX image"),
            ("vpc", None, "a VHD image"),
            ("vpc", Some("subformat=fixed"), "a VHD image"),
            ("vdi", None, "a VDI image"),
            ("parallels", None, "a Parallels image"),
        ] {
            let path = folder.path().join(format!("{format}{}", options.unwrap_or_default()));
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", format]).arg(&path).arg("4M").stderr(Stdio::null());
            create.args(options.iter().flat_map(|options| ["-o", options]));
            if ran(&mut create) {
                let error = refused(&path, "`qemu-img convert -O raw '");
                assert!(error.contains(name), "{format} {options:?}: {error}");
                made += 1;
            } else {
                eprintln!("skipped: {name}: qemu-img makes no {format}");
            }
        }
        let qemu = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_ok();
        assert!(!qemu || made > 4, "qemu-img made {made} images");
    }

    #[test]
    fn a_packed_disk_is_refused_with_the_command_that_unpacks_it() {
        let folder = tempfile::tempdir().unwrap();
        for program in ["gzip", "xz", "zstd", "bzip2", "lz4"] {
            let (path, raw) = (folder.path().join(program), folder.path().join("disk.img"));
            fs::write(&raw, vec![7; 1 << 20]).unwrap();
            let out = File::create(&path).unwrap();
            match Command::new(program).arg("-c").arg(&raw).stdout(out).status() {
                Ok(status) if status.success() => {
                    let error = refused(&path, &format!("`{program} -dc '"));
                    assert!(error.contains(&format!("packed by {program}")), "{error}");
                }
                _ => eprintln!("skipped: a_packed_disk_is_refused: no {program}"),
            }
        }
    }

    #[test]
    fn a_raw_disk_of_any_size_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let disk = |bytes: &[u8]| -> PathBuf {
            let path = folder.path().join("disk");
            fs::write(&path, bytes).unwrap();
            path
        };
        for bytes in [&b""[..], b"Q", b"QFI", &[0; 65], &[0; 511], &[0; 512], &[0xff; 5000]] {
            let path = disk(bytes);
            let file = File::open(&path).unwrap();
            assert_eq!(refusal(&file, bytes.len() as u64, &path).unwrap(), None);
        }
        // Each format by its mark alone.
        for (name, at, mark, _) in FORMATS {
            let mut bytes = vec![0; 4096];
            let place = match at {
                Start(offset) => *offset as usize,
                End(offset) => bytes.len() - *offset as usize,
            };
            bytes[place..place + mark.len()].copy_from_slice(mark);
            assert!(refused(&disk(&bytes), "").contains(name), "{name}");
        }
    }
}
