//! What `kite image pull` takes of memory for a large layer.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cases::noise;
use super::layout::{self, Stored};
use super::{Work, tagged};
use crate::step::output;

/// The layer's size, unpacked, in bytes.
const LAYER: usize = 1 << 30;
/// What kite may take, in KiB.
const MOST: u64 = 64 << 10;
/// The layer is this many bytes over and over, which compress quickly and have no block of zeros.
const PATTERN: usize = 24_000;
/// How often a running kite is looked at: what is read is a maximum, which hardly grows at the end.
const INTERVAL: Duration = Duration::from_millis(2);

/// The ways in which a layer is compressed: a name, the media type's end, and the program with its options.
pub const KINDS: [(&str, &str, &[&str]); 3] = [
    ("memory-tar", "tar", &["cat"]),
    ("memory-gzip", "tar+gzip", &["gzip", "-1", "-c"]),
    ("memory-zstd", "tar+zstd", &["zstd", "-q", "-c"]),
];

/// Pulls an image of one such layer. Returns what it took at most, in KiB.
///
/// # Errors
/// The image cannot be made or pulled, or it takes too much.
pub fn measure(work: &Work, name: &str, kind: &str, program: &[&str]) -> Result<u64> {
    let folder = work.make_folder(name)?;
    let image = image(&folder, kind, program).context("making the image")?;
    let mut kite = work.kite(&folder, &["pull"])?;
    kite.arg(tagged(&image)).stdout(Stdio::null()).stderr(Stdio::piped());
    let peak = peak(kite.spawn().context("starting kite")?)?;
    fs::remove_dir_all(&folder).context("removing what was measured")?;
    ensure!(peak <= MOST, "it took {peak} KiB, and may take {MOST}");
    Ok(peak)
}

fn image(folder: &Path, kind: &str, program: &[&str]) -> Result<PathBuf> {
    let tree = folder.join("tree");
    fs::create_dir(&tree).context("making a tree")?;
    let file = File::create(tree.join("large")).context("making a file")?;
    let (mut file, pattern) = (BufWriter::new(file), noise(PATTERN));
    for _ in 0..LAYER.div_ceil(PATTERN) {
        file.write_all(&pattern).context("writing a file")?;
    }
    file.flush().context("writing a file")?;
    let (archive, blob) = (folder.join("archive"), folder.join("blob"));
    output(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("."))?;
    let packed = File::create(&blob).context("making a blob")?;
    let mut packing = Command::new(program[0]);
    let packed = packing.args(&program[1..]).arg(&archive).stdout(packed).status();
    ensure!(packed.with_context(|| format!("running {}", program[0]))?.success(), "{} fails", program[0]);
    layout::write_stored(folder.join("layout"), &[Stored { archive, blob, kind }])
}

/// Waits for a process. Returns the most memory it had, in KiB.
fn peak(mut child: Child) -> Result<u64> {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = None;
    let ended = loop {
        // One that has ended has none.
        let line = fs::read_to_string(&status).ok().and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.to_owned();
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        peak = peak.max(line);
        if let Some(ended) = child.try_wait().context("waiting for kite")? {
            break ended;
        }
        thread::sleep(INTERVAL);
    };
    if !ended.success() {
        let said = child.wait_with_output().context("reading what kite says")?.stderr;
        bail!("kite ended with {ended}: {}", String::from_utf8_lossy(&said).trim());
    }
    peak.context("kite's memory was never seen")
}
