//! What a guest shows on its screen: in the picture of a run that fails, and to viewers.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::read::ZlibDecoder;

use super::command::{AS_ROOT, ended, kite};
use super::{Fixture, NotHere, kernel, watched};
use crate::debian::{self, BOOT};
use crate::host;
use crate::machine::Access;
use crate::running::Running;
use crate::setup::{PASSWORD, viewers_python};

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

/// Where viewers find the screen.
const ADDRESS: [&str; 2] = ["127.0.0.1", "5901"];
/// What all viewers may take, with an emulated machine's boot.
const LOOKING: Duration = Duration::from_secs(850);
/// The font of Linux's console.
const FONT: &str = "/usr/share/consolefonts/Lat15-VGA16.psf.gz";

/// Viewers and a browser show a Debian's login prompt, and what is typed in them logs in.
pub fn viewers(fixture: &Fixture) -> Result<String> {
    let python = viewers_python()?;
    if !python.exists() {
        return Err(NotHere(
            "the viewers are not installed: `cargo xtask test screen/viewers` does it".to_owned(),
        )
        .into());
    }
    let (disk, script) = (fixture.file("seen.img"), fixture.file("viewers.py"));
    debian::copy(&fixture.debian.disk(), &disk)?;
    fs::write(&script, include_str!("screen/viewers.py")).context("writing the script")?;
    let _wire = super::Wire::new(fixture.user)?;
    let mut command =
        debian::machine(&fixture.debian, &disk, Access::Write, 1, Vec::new()).command(&fixture.vmm);
    command.args(["--screen", "--vnc", &ADDRESS.join(":")]);
    let mut viewers = Command::new(python);
    viewers.arg(script).args(ADDRESS).args([FONT, PASSWORD]).arg(fixture.file(""));
    let seen = watched(Running::start(command, fixture.shown)?, |machine| {
        let mut viewers = Running::start(viewers, fixture.shown)?;
        let status = viewers.end(LOOKING)?;
        ensure!(status.success(), "the viewers saw otherwise: {}", viewers.said());
        machine.type_in("root\n")?;
        machine.wait_for("Password: ", BOOT)?;
        machine.type_in(&format!("{PASSWORD}\npoweroff\n"))?;
        let status = machine.end(BOOT)?;
        ensure!(status.success(), "the machine ended with {status}");
        Ok(viewers.said().lines().collect::<Vec<_>>().join(", "))
    })?;
    fs::remove_file(disk).context("removing a disk")?;
    Ok(seen)
}

/// The colours of the terminal that is shown, its background's first.
const COLOURS: [[u8; 3]; 2] = [[0x12, 0x34, 0x56], [0xfe, 0xdc, 0xba]];
/// Shows a terminal by Xorg, for as long as a picture takes.
const XTERM: &str = r##"
cd /tmp
cat >xorg.conf <<END
Section "ServerFlags"
    Option "AutoAddDevices" "off"
EndSection
Section "Device"
    Identifier "card"
    Driver "$1"
EndSection
END
Xorg :1 vt1 -config /tmp/xorg.conf -logfile /tmp/xorg.log -noreset -nocursor >xorg.out 2>&1 &
for i in $(seq 300); do [ -S /tmp/.X11-unix/X1 ] && break; sleep 0.2; done
DISPLAY=:1 xterm -geometry 200x60+0+0 -bg '#123456' -fg '#fedcba' -e sh -c 'echo shown; touch shown; sleep 1000' >xterm.out 2>&1 &
for i in $(seq 300); do [ -e shown ] && break; sleep 0.2; done
[ -e shown ] || { cat xorg.out xorg.log xterm.out; exit 4; }
sleep 5
exit 3
"##;

/// Xorg shows a terminal by this driver.
pub fn xorg(fixture: &Fixture, name: &str, driver: &str) -> Result<String> {
    if host::program("Xorg").is_none() {
        return Err(
            NotHere("Xorg is not installed: `cargo xtask test screen/xorg` does it".to_owned()).into()
        );
    }
    let picture = fixture.file("xorg.png");
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--screen", "--memory", "768M", "--screenshot-on-failure"]).arg(&picture).args(AS_ROOT);
    command.args(["--", "sh", "-c", XTERM, "sh", driver]);
    let ended = ended(command, b"")?;
    ensure!(ended.code == Some(3), "{ended:#?}");
    let rows = rows(&picture).with_context(|| format!("reading {}", picture.display()))?;
    let count =
        |colour: [u8; 3]| rows.iter().flat_map(|row| row.chunks(3)).filter(|it| **it == colour).count();
    let [background, text] = COLOURS.map(count);
    ensure!(background > WIDTH * HEIGHT / 2, "only {background} pixels are the terminal's");
    ensure!((50..background / 10).contains(&text), "{text} pixels are text");
    Ok(format!("{background} pixels of a terminal, {text} of them text"))
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
