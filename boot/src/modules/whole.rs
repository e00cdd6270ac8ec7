//! Whether a module's file is all there, as far as can be seen without unpacking it: one that was cut short would only be
//! reported by the guest, by a number.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use flate2::read::GzDecoder;

use super::tree::long;
use super::zstd;

/// What a module's file may measure.
const FILE_MAX: u64 = 256 << 20;
/// Lengths of ELF's header and of a section's (ELF-64), and of a stream's header and footer (xz).
const HEADER: usize = 64;
const SECTION: usize = 64;
const STREAM: usize = 12;
/// The type of sections that have nothing in the file.
const SHT_NOBITS: u32 = 8;

const CUT: &str = "it is cut short";

/// # Errors
/// The file cannot be read; within that, what is wrong with it.
pub(super) fn check(file: &File) -> io::Result<Result<(), &'static str>> {
    let len = file.metadata()?.len();
    let mut head = [0; 6];
    let have = len.min(head.len() as u64) as usize;
    file.read_exact_at(&mut head[..have], 0)?;
    match head[..have] {
        [] => Ok(Err("it is empty")),
        _ if len > FILE_MAX => Ok(Err("it has more than 256 MiB")),
        [0x7f, b'E', b'L', b'F', 2, 1] => elf(file, len),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => xz(file, len),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(zstd::frames(&bytes).map(drop))
        }
        [0x1f, 0x8b, ..] => gzip(file),
        _ if have < head.len() => Ok(Err(CUT)),
        _ => Ok(Err("it is neither an ELF file of this processor's nor compressed by xz, zstd or gzip")),
    }
}

/// All sections are in the file, and so are their headers, which are at its end if it is not signed.
fn elf(file: &File, len: u64) -> io::Result<Result<(), &'static str>> {
    if len < HEADER as u64 {
        return Ok(Err(CUT));
    }
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let (start, count) = (long(&header, 0x28), usize::from(u16::from_le_bytes([header[0x3c], header[0x3d]])));
    let size = count * SECTION;
    if start.checked_add(size as u64).is_none_or(|end| end > len) {
        return Ok(Err(CUT));
    }
    let mut headers = vec![0; size];
    file.read_exact_at(&mut headers, start)?;
    let is_inside = |header: &[u8]| {
        let kind = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let end = long(header, 0x18).checked_add(long(header, 0x20));
        kind == SHT_NOBITS || end.is_some_and(|end| end <= len)
    };
    Ok(if headers.chunks_exact(SECTION).all(is_inside) { Ok(()) } else { Err(CUT) })
}

/// The last stream has its footer, with the same flags as the header, in front of zeros that fill up.
fn xz(file: &File, len: u64) -> io::Result<Result<(), &'static str>> {
    let (mut first, mut last) = ([0; STREAM], [0; STREAM]);
    let mut end = len;
    loop {
        let Some(start) = end.checked_sub(STREAM as u64).filter(|start| *start >= STREAM as u64) else {
            return Ok(Err(CUT));
        };
        file.read_exact_at(&mut last, start)?;
        if last[8..] != [0; 4] {
            break;
        }
        end -= 4;
    }
    file.read_exact_at(&mut first, 0)?;
    let is_footer = last.ends_with(b"YZ") && last[8..10] == first[6..8] && len.is_multiple_of(4);
    Ok(if is_footer { Ok(()) } else { Err(CUT) })
}

/// Only unpacking shows whether this is whole. What follows its end does not matter, as for gzip(1).
fn gzip(file: &File) -> io::Result<Result<(), &'static str>> {
    let mut file = file.try_clone()?;
    io::Seek::rewind(&mut file)?;
    let mut unpacked = GzDecoder::new(io::BufReader::new(file)).take(FILE_MAX);
    Ok(match io::copy(&mut unpacked, &mut io::sink()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(CUT),
        Err(_) => Err("it is damaged"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn checked(bytes: &[u8]) -> Result<(), &'static str> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), bytes).unwrap();
        check(&File::open(folder.path().join("file")).unwrap()).unwrap()
    }

    /// An ELF file with a section of these bytes.
    fn elf(content: &[u8]) -> Vec<u8> {
        let mut file = vec![0; HEADER];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&((HEADER + content.len()) as u64).to_le_bytes());
        file[0x3c] = 1;
        file.extend(content);
        let mut section = [0; SECTION];
        section[0x18..0x20].copy_from_slice(&(HEADER as u64).to_le_bytes());
        section[0x20..0x28].copy_from_slice(&(content.len() as u64).to_le_bytes());
        file.extend(section);
        file
    }

    /// What a program makes of the bytes; nothing if it is not there.
    fn packed(bytes: &[u8], program: &str, options: &[&str]) -> Option<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, bytes).unwrap();
        let output = Command::new(program).args(options).arg("-c").stdin(File::open(&file).unwrap()).output();
        output.ok().filter(|output| output.status.success()).map(|output| output.stdout)
    }

    #[test]
    fn a_file_that_is_cut_short_anywhere_is_found_out() {
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..3000).map(|_| noise()).collect();
        let module = elf(&[noise, vec![7; 300_000]].concat());
        let mut files = vec![("ELF", module.clone())];
        for (program, options) in [
            ("xz", &["-9"][..]),
            ("xz", &["--check=crc32", "--block-size=65536"]),
            ("zstd", &["--long=27"]),
            ("zstd", &["-19", "--no-check"]),
            ("gzip", &[]),
        ] {
            match packed(&module, program, options) {
                Some(bytes) => files.push((program, bytes)),
                None => eprintln!("skipped: a_file_that_is_cut_short_anywhere_is_found_out: no {program}"),
            }
        }
        for (name, bytes) in files {
            assert_eq!(checked(&bytes), Ok(()), "{name}");
            for end in (0..bytes.len()).step_by(1.max(bytes.len() / 400)).chain([bytes.len() - 1]) {
                assert!(checked(&bytes[..end]).is_err(), "{name} cut at {end}");
            }
        }
    }

    #[test]
    fn what_is_no_module_says_so_and_bytes_behind_gzip_do_not_matter() {
        assert_eq!(checked(b""), Err("it is empty"));
        assert_eq!(checked(b"\x7fEL"), Err(CUT));
        assert!(checked(b"a text\n").unwrap_err().starts_with("it is neither"));
        if let Some(gzip) = packed(&elf(b"content"), "gzip", &[]) {
            assert_eq!(checked(&[&gzip[..], &[0; 512], b"more"].concat()), Ok(()));
        }
    }

    #[test]
    fn any_frame_is_read_without_a_panic() {
        let frame = b"(\xb5/\xfd\x04h\x05\x01\0\xc0\x7fELF kite loads modules.\x01\0(\xbcj\x8e\x01\"g\xfc<";
        let found = zstd::frames(frame).unwrap();
        let expected = zstd::Frame { range: 0..frame.len(), window: Some(5), most: 128 << 10 };
        assert_eq!(found, [expected]);
        assert_eq!([0x68, 0x88, 0xff, 8].map(|asked| found[0].enough(asked)), [0x38, 0x38, 0x38, 8]);
        let twice = [&frame[..], b"\x53\x2a\x4d\x18\x03\0\0\0abc", frame].concat();
        assert_eq!(zstd::frames(&twice).unwrap().len(), 2);
        for at in 0..twice.len() {
            for value in [0, 0xff, twice[at] ^ 0x20] {
                let mut broken = twice.clone();
                broken[at] = value;
                let _any = zstd::frames(&broken);
            }
        }
    }
}
