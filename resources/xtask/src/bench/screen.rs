//! How often a viewer sees a screen whose every row changes: full pictures a second, by the encoding they come in.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use boot::testing::{Entry, kernel};

use crate::e2e::Started;

const WIDTH: u16 = 1024;
const HEIGHT: u16 = 768;
/// How long a viewer may wait for the machine, or for a picture.
const PATIENCE: Duration = Duration::from_secs(30);
/// Fills the frame buffer with noise, and then changes each row, over and over, in 32-bit mode:
///
/// ```text
///     mov edi, 0xe0000000; mov ecx, 1024 * 768; mov eax, 1
/// 1:  imul eax, eax, 1664525; add eax, 1013904223; stosd; loop 1b
/// 2:  inc ebx; mov edi, 0xe0000000; mov ecx, 768
/// 3:  mov [edi], ebx; add edi, 4096; loop 3b; jmp 2b
/// ```
#[rustfmt::skip]
const CODE: [u8; 52] = [
    0xbf, 0, 0, 0, 0xe0, 0xb9, 0, 0, 0x0c, 0, 0xb8, 1, 0, 0, 0,
    0x69, 0xc0, 0x0d, 0x66, 0x19, 0, 0x05, 0x5f, 0xf3, 0x6e, 0x3c, 0xab, 0xe2, 0xf2,
    0x43, 0xbf, 0, 0, 0, 0xe0, 0xb9, 0, 3, 0, 0,
    0x89, 0x1f, 0x81, 0xc7, 0, 0x10, 0, 0, 0xe2, 0xf6, 0xeb, 0xe9,
];

/// Prints how many pictures a viewer gets in this many seconds.
///
/// # Errors
/// The machine does not start, or speaks no RFB.
pub fn run(kite: &Path, seconds: u32) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let guest = folder.path().join("guest");
    std::fs::write(&guest, kernel(&CODE, Entry::Pvh)).context("writing a guest")?;
    println!("{:<10}{:>16}{:>10}", "", "pictures a s", "MiB a s");
    for (name, encoding) in [("Raw", 0), ("ZRLE", 16)] {
        let socket = folder.path().join(name);
        let mut command = Command::new(kite);
        command.args(["run", "--force", "--screen", "--vnc"]).arg(format!("unix:{}", socket.display()));
        command.arg("--kernel").arg(&guest).stdin(Stdio::null()).stdout(Stdio::null());
        let _kite = Started::new(&mut command)?;
        let mut viewer = Viewer::connect(&socket, encoding)?;
        // The guest's own drawing of its first picture, and the first look, which has all of it.
        viewer.picture(false)?;
        let (begun, limit) = (Instant::now(), Duration::from_secs(seconds.into()));
        let (mut count, mut bytes) = (0, 0);
        while begun.elapsed() < limit {
            bytes += viewer.picture(true)?;
            count += 1;
        }
        let time = begun.elapsed().as_secs_f64();
        println!(
            "{name:<10}{:>16.1}{:>10.1}",
            f64::from(count) / time,
            bytes as f64 / time / f64::from(1 << 20)
        );
    }
    Ok(())
}

/// The screen's width and height, as RFB has them.
fn size() -> [u8; 4] {
    let ([a, b], [c, d]) = (WIDTH.to_be_bytes(), HEIGHT.to_be_bytes());
    [a, b, c, d]
}

/// A viewer that shows nothing (RFC 6143).
struct Viewer {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Viewer {
    fn connect(socket: &Path, encoding: i32) -> Result<Self> {
        let begun = Instant::now();
        let to = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > PATIENCE => {
                    return Err(error).context("connecting to the screen");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        to.set_read_timeout(Some(PATIENCE)).context("setting a timeout")?;
        let from = BufReader::new(to.try_clone().context("sharing a socket")?);
        let mut viewer = Self { to, from };
        viewer.skip(12)?;
        viewer.to.write_all(b"RFB 003.008\n")?;
        let kinds = viewer.bytes::<1>()?[0];
        viewer.skip(kinds.into())?;
        viewer.to.write_all(&[1])?;
        ensure!(viewer.bytes()? == [0; 4], "the screen refuses a viewer");
        viewer.to.write_all(&[1])?;
        ensure!(viewer.bytes()? == size(), "the screen has another size");
        viewer.skip(16)?;
        let name = u32::from_be_bytes(viewer.bytes()?);
        viewer.skip(name.into())?;
        viewer.to.write_all(&[&[2, 0, 0, 1][..], &encoding.to_be_bytes()].concat())?;
        Ok(viewer)
    }

    /// Asks for what has changed, or for everything, until all of the screen has come; answers how many bytes that took.
    fn picture(&mut self, changes: bool) -> Result<u64> {
        let (mut pixels, mut bytes) = (0, 0);
        while pixels < u32::from(WIDTH) * u32::from(HEIGHT) {
            self.to.write_all(&[&[3, changes.into(), 0, 0, 0, 0][..], &size()].concat())?;
            let [kind, _, high, low] = self.bytes()?;
            ensure!(kind == 0, "the screen sends a message of kind {kind}");
            for _ in 0..u16::from_be_bytes([high, low]) {
                let header: [u8; 12] = self.bytes()?;
                let side = |at: usize| u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
                let area = side(4) * side(6);
                let len = match header[11] {
                    0 => u64::from(area) * 4,
                    16 => u32::from_be_bytes(self.bytes()?).into(),
                    other => bail!("the screen sends encoding {other}"),
                };
                self.skip(len)?;
                pixels += area;
                bytes += len;
            }
        }
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).context("hearing the screen")?;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.from).take(len), &mut std::io::sink());
        ensure!(skipped.context("hearing the screen")? == len, "the screen has gone");
        Ok(())
    }
}
