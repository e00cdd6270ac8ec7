//! A command on the newest of Debian's kernels, whose modules are packed as no distribution packs them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use boot::modules::{ModuleFile, Modules};

use super::command::ended;
use super::{Fixture, NotHere};
use crate::host;
use crate::machine::kite_run;
use crate::setup::Kernel;

/// What a command's guest loads.
const MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtiofs",
    "overlay",
    "pvpanic-mmio",
    "virtio_net",
];
/// Ways to pack that take a window of 64 MiB and of 128 MiB to 2 GiB to unpack. From a pipe, zstd cannot know that less will do.
const PACKERS: [&[&str]; 4] = [
    &["xz", "-9", "--check=crc32"],
    &["zstd", "-q", "--long=27"],
    &["zstd", "-q", "--ultra", "--long=31", "--no-check"],
    &["gzip", "-9"],
];

/// A guest of little memory loads them, and a module that is cut short is found before it starts.
pub fn command(fixture: &Fixture, name: &str) -> Result<String> {
    // Backports go on to the next.
    let Some(kernel) = Kernel::open(name)? else { return Err(NotHere(format!("no kernel {name}")).into()) };
    let packed = packed(fixture, &kernel)?;
    let folder = fixture.file("modules");
    let run = || -> Result<Command> {
        let mut kite = kite_run(fixture.program()?, &kernel.bz_image());
        kite.args(["--memory", "192M"]).arg("--modules").arg(&folder).args([
            "--",
            "sh",
            "-c",
            "uname -r; cut -d' ' -f1 /proc/modules",
        ]);
        Ok(kite)
    };
    let whole = ended(run()?, b"")?;
    let stdout = String::from_utf8_lossy(&whole.stdout);
    let mut lines = stdout.lines();
    ensure!(whole.code == Some(0) && whole.stderr.is_empty(), "{whole:#?}");
    ensure!(lines.next() == Some(kernel.release.as_str()), "{stdout}");
    let loaded: Vec<&str> = lines.collect();
    for name in ["virtio_mmio", "virtio_console", "virtiofs", "overlay"] {
        let is_packed = packed.iter().any(|module| module.name == name);
        ensure!(!is_packed || loaded.contains(&name), "{name} is not among {loaded:?}");
    }
    let module = packed.first().context("there is no module")?;
    let bytes = fs::read(&module.path).context("reading a module")?;
    fs::write(&module.path, &bytes[..bytes.len() / 2]).context("cutting a module")?;
    let cut = ended(run()?, b"")?;
    ensure!(cut.code == Some(125) && cut.stderr.contains("it is cut short"), "with a cut module: {cut:#?}");
    Ok(format!("{} modules packed anew", packed.len()))
}

/// Makes a folder of the modules, each packed in another way.
fn packed(fixture: &Fixture, kernel: &Kernel) -> Result<Vec<ModuleFile>> {
    for packer in PACKERS {
        if host::program(packer[0]).is_none() {
            return Err(NotHere(format!("there is no {}", packer[0])).into());
        }
    }
    let (from, to) = (kernel.modules(), fixture.file("modules"));
    fs::create_dir_all(&to).context("making a folder")?;
    for list in ["modules.dep", "modules.builtin"] {
        fs::copy(from.join(list), to.join(list)).with_context(|| format!("copying {list}"))?;
    }
    let modules = Modules::open(&from)?.resolve(&[], &MODULES)?;
    modules
        .into_iter()
        .zip(PACKERS.iter().cycle())
        .map(|(module, packer)| pack(module, packer, &from, &to))
        .collect()
}

/// Writes the module below `to`, under its name, which says nothing of how it is packed.
fn pack(module: ModuleFile, packer: &[&str], from: &Path, to: &Path) -> Result<ModuleFile> {
    let path: PathBuf = to.join(module.path.strip_prefix(from).context("a module elsewhere")?);
    fs::create_dir_all(path.parent().context("a module's folder")?).context("making a folder")?;
    let script = "case $1 in *.xz) xz -dc \"$1\";; *.zst) zstd -dc \"$1\";; *) cat \"$1\";; esac | { shift; exec \"$@\" -c; }";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&module.path).args(packer);
    command.stdout(File::create(&path).context("making a module's file")?);
    let status = command.status().context("packing a module")?;
    ensure!(status.success(), "packing {} by {packer:?}: {status}", module.name);
    Ok(ModuleFile { path, ..module })
}
