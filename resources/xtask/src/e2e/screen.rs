//! What a kernel shows on the screen, in the picture of a run that fails.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::ZlibDecoder;

use super::command::{ended, kite};
use super::{Fixture, kernel};

const WIDTH: usize = 1024;
const HEIGHT: usize = 768;
/// The rows of the screen that a kernel's messages fill at least: a quarter.
const TEXT: usize = HEIGHT / 4;

/// A kernel without a driver for graphics shows its messages on the frame buffer, and the picture has them.
pub fn frame_buffer(fixture: &Fixture, name: &str) -> Result<String> {
    let picture = fixture.file("screen.png");
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--screen", "--verbose", "--screenshot-on-failure"]).arg(&picture);
    let script = "cat /sys/class/graphics/fb0/name; head -c 40 /dev/zero >/dev/fb0; exit 3";
    command.args(["--", "sh", "-c", script]);
    let ended = ended(command, b"")?;
    ensure!(ended.code == Some(3), "{ended:#?}");
    let driver = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    let rows = rows(&picture).with_context(|| format!("reading {}", picture.display()))?;
    ensure!(rows[0][..30].iter().all(|sample| *sample == 0), "what the guest blackened is not black");
    let text = rows.iter().filter(|row| row.iter().any(|sample| *sample > 0)).count();
    ensure!(text >= TEXT, "only {text} rows of the screen have anything on them, by {driver}");
    Ok(format!("{driver}, {text} rows with text"))
}

/// The samples of each row: three a pixel.
fn rows(path: &Path) -> Result<Vec<Vec<u8>>> {
    let png = fs::read(path)?;
    let chunk = |kind: &[u8]| -> Option<&[u8]> {
        let at = png.windows(4).position(|it| it == kind)?;
        let len = u32::from_be_bytes(png.get(at.checked_sub(4)?..at)?.try_into().ok()?);
        png.get(at + 4..at + 4 + len as usize)
    };
    let header = chunk(b"IHDR").context("it has no header")?;
    ensure!(header == [0, 0, 4, 0, 0, 0, 3, 0, 8, 2, 0, 0, 0], "its header is {header:?}");
    let mut samples = Vec::new();
    ZlibDecoder::new(chunk(b"IDAT").context("it has no pixels")?).read_to_end(&mut samples)?;
    ensure!(samples.len() == (3 * WIDTH + 1) * HEIGHT, "it has {} bytes", samples.len());
    Ok(samples.chunks(3 * WIDTH + 1).map(|row| row[1..].to_vec()).collect())
}
