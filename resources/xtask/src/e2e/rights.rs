//! What a command finds in its guest as it would here: streams by their names, its caller's mask and limits, and what files on
//! a share permit to whom they belong.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::command::{ended, kite};
use super::{Fixture, kernel};
use crate::user::GROUP;

/// What kite's caller has set. There are fewer open files than the command has open at once on the share, were they divided
/// among kite's shares.
const CALLER: &str =
    "umask 027; ulimit -n 300; ulimit -c 0; ulimit -f 204800; ulimit -s 4096; ulimit -t 5000; exec \"$@\"";

/// Run in a share; /team is another, a folder of a group of its user's.
const SCRIPT: &str = r#"
for name in stdout stderr; do echo "to $name" >/dev/$name; done
test "$(cat /dev/stdin)" = input && echo input
umask; ulimit -n; ulimit -Hn; ulimit -c; ulimit -f; ulimit -s; ulimit -t
echo x >new; mkdir made; stat -c "%a %n" new made
touch /team/new && mkdir /team/made && chgrp 60998 /team/new && stat -c "%g %n" /team/new
unshare -Ur sh -c 'mkdir -m 555 own && mkdir own/x && echo a >f && chmod 444 f && echo b >>f && echo root; chmod 755 own'
cp /bin/true program && chmod 6755 program && stat -c "%a %n" program
grep -q " $PWD virtiofs rw,nosuid," /proc/mounts && echo nosuid
mkdir many && cd many && python3 -c '
import os
files = [open(str(n), "w+") for n in range(250)]
for n in range(250): files[n].write(str(n)); files[n].flush()
for n in range(0, 250, 3): os.unlink(str(n)) if n % 10 == 5 else os.rename(str(n), "new%d" % n)
for n in range(0, 250, 5): os.chmod(str(n) if n % 3 else files[n].fileno(), 0o400)
for n in range(250): files[n].seek(0); assert files[n].read() == str(n); files[n].write("!"); files[n].flush()
print(len(os.listdir(".")))
'
"#;

/// What it prints.
const PRINTED: &str = "to stdout
input
0027
300
300
0
204800
4096
5000
640 new
750 made
60998 /team/new
root
755 program
nosuid
242
";

/// One boot for all of it.
pub fn rights(fixture: &Fixture, name: &str) -> Result<String> {
    let folder = fixture.file("rights");
    fs::create_dir(&folder).context("making a folder")?;
    chown(&folder, Some(fixture.user()), Some(fixture.user())).context("giving a folder to kite's user")?;
    // Not in a folder that is wholly the user's.
    let team = tempfile::tempdir().context("making a folder")?;
    let team = team.path();
    chown(team, Some(0), Some(GROUP)).context("giving a folder to a group")?;
    fs::set_permissions(team, Permissions::from_mode(0o2770)).context("opening a folder to a group")?;
    let kite = kite(fixture, &kernel(name)?)?;
    let mut command = Command::new("bash");
    command.args(["-c", CALLER, "bash"]).arg(kite.get_program()).args(kite.get_args());
    command.args(["--share", ".:rw", "--share"]).arg(format!("{}:/team:rw", team.display()));
    command.args(["--", "bash", "-c", SCRIPT]).current_dir(&folder);
    let ended = ended(command, b"input")?;
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let as_it_should = ended.code == Some(0) && stdout == PRINTED && ended.stderr == "to stderr\n";
    ensure!(as_it_should, "{:?}: {stdout}{}", ended.code, ended.stderr);
    let of = |path: &Path| fs::metadata(path).map(|it| (it.uid(), it.gid(), it.mode() & 0o7777));
    let made = of(&team.join("made")).context("looking at what the guest made")?;
    ensure!(made == (fixture.user(), GROUP, 0o2750), "a folder in one of a group's is {made:?}");
    Ok(String::new())
}
