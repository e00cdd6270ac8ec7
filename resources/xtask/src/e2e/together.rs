//! What a command finds in its guest, in as few boots as its options allow: what combines shares one. The nightly tests of
//! `command` look at each alone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};

use super::command::{self, AS_ROOT, Ended, WHAT_IS_THERE, ended, kite};
use super::{Fixture, kernel};

/// Files, environment, streams and a status, for the user who calls: what is printed is compared whole.
const AS_CALLER: &str = r#"pwd; cat file; echo guest >file; cat file
cat; echo err >&2
test -t 0 || test -t 1 || echo none
echo kept >/mnt/x; mkdir /mnt/d; mv /mnt/x /mnt/d/y
id -u; test -r /etc/hostname && echo root
echo $A; test "$HOME" = ~ && echo home
sleep 1000 &
exec <&-; sleep 1; echo on; exit 7"#;
/// The same for somebody else, who changes nothing, and ends by a signal.
const AS_NOBODY: &str = r#"id -u; id -un; touch "$HERE/file" 2>/dev/null || echo no; test -w /tmp && echo tmp
touch "$HERE/../beside/x" 2>/dev/null || echo refused
env | grep -v ^TERM= | cut -d= -f1 | sort | tr '\n' ' '
pwd; kill -TERM $$; sleep 1000"#;
/// What is on a disk, which is forgotten.
const ON_DISK: &str = "pwd; test -s /etc/hostname && echo x >/etc/hostname; cat /etc/hostname";
/// Root's files, and a crash.
const CRASHES: &str = "rm file; mkdir -p new/folder; touch /new; ls /new
echo marked >/dev/kmsg; echo c >/proc/sysrq-trigger; sleep 1000";

/// The files of a host.
fn files(fixture: &Fixture, name: &str) -> Result<std::path::PathBuf> {
    let folder = fixture.file(name);
    for sub in ["here", "beside"] {
        fs::create_dir_all(folder.join(sub)).context("making folders")?;
    }
    fs::write(folder.join("here/file"), "host\n").context("writing a file")?;
    Ok(folder)
}

/// Fails unless a command ended so, having printed exactly this.
fn expect(ended: &Ended, code: i32, stdout: &str, stderr: &str) -> Result<()> {
    let printed = String::from_utf8_lossy(&ended.stdout);
    ensure!(
        ended.code == Some(code) && printed == stdout && ended.stderr == stderr,
        "{code}, {stdout:?} and {stderr:?} were expected: {ended:#?}"
    );
    Ok(())
}

/// An ordinary command in three boots, of which nothing is left.
pub fn command(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let folder = files(fixture, "together")?;
    let (here, user) = (folder.join("here"), fixture.user());
    // Where nobody else leaves anything.
    let temporary = fixture.file("temporary");
    fs::create_dir_all(&temporary).context("making a folder")?;
    let before = command::left(&temporary)?;
    let run = |options: &[&str], script: &str, input: &[u8]| -> Result<Ended> {
        let mut command = kite(fixture, &kernel)?;
        command.current_dir(&here).env("TMPDIR", &temporary).args(options).args(["--", "sh", "-c", script]);
        ended(command, input)
    };
    let options = ["--share", "../beside:/mnt:rw", "--env", "A=b c", "--env", "HOME"];
    let stdout = format!("{}\nhost\nguest\nin\0putnone\n{user}\nroot\nb c\nhome\non\n", here.display());
    expect(&run(&options, AS_CALLER, b"in\0put")?, 7, &stdout, "err\n")?;
    let kept = folder.join("beside/d/y");
    let text = fs::read_to_string(&kept).context("reading what the guest wrote")?;
    let owner = fs::metadata(&kept).context("looking at what the guest wrote")?.uid();
    ensure!(text == "kept\n" && owner == user, "the share has {text:?} of user {owner}");
    let content = fs::read_to_string(here.join("file")).context("reading the file again")?;
    ensure!(content == "host\n", "the host's file is {content:?}");
    let env = format!("HERE={}", here.display());
    let options = ["--user", "nobody", "--clear-env", "--env", &env, "--cwd", "/usr", "--share", "../beside"];
    let stdout = "65534\nnobody\nno\ntmp\nrefused\nHERE HOME LOGNAME PATH PWD USER /usr\n";
    expect(&run(&options, AS_NOBODY, b"")?, 143, stdout, "")?;
    let disk = fixture.debian.disk().display().to_string();
    let disk = format!("path={},ephemeral", disk.replace(',', ",,"));
    let options = [&AS_ROOT[..], &["--root", "disk", "--disk", &disk]].concat();
    expect(&run(&options, ON_DISK, b"")?, 0, "/\nx\n", "")?;
    let after = command::left(&temporary)?;
    ensure!(before == after, "{}: {before:?} before, {after:?} after", command::LEFT);
    Ok(String::new())
}

/// Root finds what programs expect, changes nothing of the host's, and crashes the kernel, which says why.
pub fn as_root(fixture: &Fixture, name: &str) -> Result<String> {
    let folder = files(fixture, "as-root")?;
    let (here, log) = (folder.join("here"), fixture.file("as-root.log"));
    let mut command = kite(fixture, &kernel(name)?)?;
    command.arg("--kernel-log").arg(&log).args(AS_ROOT).current_dir(&here);
    command.args(["--", "sh", "-c", &format!("{WHAT_IS_THERE}{CRASHES}")]);
    let ended = ended(command, b"")?;
    let panic = ended.stderr.contains("Kernel panic - not syncing: sysrq triggered crash");
    ensure!(ended.code == Some(255) && panic && ended.stdout == b"/new\n", "{ended:#?}");
    let text = fs::read_to_string(&log).context("reading the kernel's messages")?;
    ensure!(text.contains("Linux version") && text.contains("marked"), "the log lacks messages: {text}");
    let listing = fs::read_dir(&here).context("looking at the folder")?.count();
    let content = fs::read_to_string(here.join("file")).context("reading the file again")?;
    ensure!(listing == 1 && content == "host\n", "the host has changed: {listing} files, {content:?}");
    Ok(String::new())
}
