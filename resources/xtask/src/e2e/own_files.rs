//! A guest that writes to what it was loaded from, over a share: it gets what it asks for, and the machine goes on.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::command::ended;
use super::{Fixture, kernel};
use crate::machine::kite_run;
use crate::setup::Kernel;

/// Run in the share. Each way to write to a file ends kite's lease on another one, and then changes it in all other ways; the
/// module is a part of the initrd.
const SCRIPT: &str = r#"
set -e
module=$(find modules -name 'overlay.ko*')
printf x >>kernel
dd if=/dev/zero of=kernel bs=4096 count=16 conv=notrunc status=none
cp "$module" copy && cp copy "$module"
fallocate -p -o 0 -l 65536 kernel
truncate -s 100 kernel
: >"$module"
for other in $(find modules -name '*.ko*'); do : >"$other"; done
cp copy kernel && mv copy "$module" && rm kernel
# What is loaded from the guest's memory is as it was.
ls / >/dev/null && dd if=/dev/urandom of=/tmp/noise bs=1M count=32 status=none
echo done
"#;

/// A folder with the kernel and its modules, as one has it that builds a kernel.
fn built(fixture: &Fixture, kernel: &Kernel) -> Result<std::path::PathBuf> {
    let folder = fixture.file("own-files");
    fs::create_dir_all(&folder).context("making a folder")?;
    fs::copy(kernel.bz_image(), folder.join("kernel")).context("copying the kernel")?;
    let copied = Command::new("cp").arg("-r").arg(kernel.modules()).arg(folder.join("modules")).status();
    ensure!(copied.context("copying modules")?.success(), "cp cannot copy the modules");
    let own = Command::new("chown").arg("-R").arg(fixture.user().to_string()).arg(&folder).status();
    ensure!(own.context("giving files away")?.success(), "chown cannot give the files away");
    Ok(folder)
}

/// One boot, of a kernel in the share.
pub fn own_files(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let folder = built(fixture, &kernel)?;
    let program = fixture.program()?;
    let mut command = kite_run(program, Path::new("kernel"));
    command.current_dir(&folder).args(["--modules", "modules", "--share", ".:rw", "--", "sh", "-c", SCRIPT]);
    let ended = ended(command, b"")?;
    ensure!(ended.code == Some(0) && ended.stdout == b"done\n" && ended.stderr.is_empty(), "{ended:?}");
    let is_there = |path: &str| Path::new(&folder).join(path).exists();
    ensure!(!is_there("kernel") && !is_there("copy"), "what the guest removed is there");
    Ok(String::new())
}
