//! `kite run --image`: a command in the image of a container, of which this makes its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::command::{Ended, ended, kite, wait};
use super::engines::{self, Engines};
use super::{Fixture, NotHere, kernel};
use crate::host;
use crate::images::guest;
use crate::saved_image;
use crate::setup::podman_archive;

/// What the image has of a shell and its programs.
const PROGRAMS: [&str; 14] = [
    "sh", "cat", "echo", "env", "grep", "hostname", "id", "ls", "mount", "pwd", "sleep", "stat", "test",
    "touch",
];
/// Where a system without them would be of no use, the image has nonsense.
const NONSENSE: [(&str, &str); 3] = [("proc", "etc"), ("dev", "nowhere"), ("tmp", "/nowhere")];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n";
const GROUP: &str = "root:x:0:\nann:x:1001:\nkvm:x:104:ann\n";
/// What the image's own command prints.
const OWN: &str = "hello\nuid=1000(ann) gid=1001(ann) groups=104(kvm)\n/srv/here\n/home/ann\nkite\n";
/// As root: what kite adds, and that it can be written to; a module, for which the image has no program.
const ADDED: &str = "grep -c kite /etc/hosts; cat /etc/hostname; test -e /etc/resolv.conf && echo resolv.conf
test -c /dev/fuse && test -c /dev/net/tun && test -d /dev/pts && echo nodes
test -e /sbin/modprobe || test 1 </dev/net/tun && echo module
ls -d /proc/self /sys/class /tmp; test -e /sys/fs/cgroup/cgroup.procs && echo cgroup
touch /etc/new /tmp/new && echo written; stat -c '%U %a' /bin/busybox; cat /mnt/file; id -u; exit 7";
const ADDED_PRINTED: &str = "2
kite
resolv.conf
nodes
module
/proc/self
/sys/class
/tmp
cgroup
written
root 755
shared
0
";
/// Prints when it is ready for a signal.
const WAITS: &str = "trap 'echo stopped; exit 3' USR1; echo ready; while true; do sleep 0.1; done";

/// An image as its owner means it, with other words, users and folders, and a signal that asks it to end.
pub fn command(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let archive = archive(fixture)?;
    let run = |arguments: &[&str]| -> Result<Command> {
        let mut command = kite(fixture, &kernel)?;
        // Nothing of the host's is the command's.
        command.env("XDG_CACHE_HOME", fixture.file("cache")).env("SECRET", "x");
        command.arg("--image").arg(&archive).args(arguments);
        Ok(command)
    };
    expect(&ended(run(&[])?, b"")?, 0, OWN)?;
    let shared = fixture.file("shared");
    fs::create_dir_all(&shared).context("making a folder")?;
    fs::write(shared.join("file"), "shared\n").context("writing a file")?;
    let share = format!("{}:/mnt", shared.display());
    let root = ["--user", "root", "--share", &share, "--", ADDED];
    expect(&ended(run(&root)?, b"")?, 7, ADDED_PRINTED)?;
    let other = [
        "--entrypoint",
        "env",
        "--env",
        "A=b c",
        "--cwd",
        "/made",
        "--",
        "sh",
        "-c",
        "cat; pwd; env | grep -v ^SHLVL",
    ];
    let ended = ended(run(&other)?, b"in\0put\n")?;
    let text = String::from_utf8_lossy(&ended.stdout);
    let mut lines: Vec<_> = text.lines().collect();
    let variables = lines.len().min(2);
    lines[variables..].sort_unstable();
    let expected = [
        "in\0put",
        "/made",
        "A=b c",
        "GREETING=hello",
        "HOME=/home/ann",
        "HOSTNAME=kite",
        "PATH=/bin",
        "PWD=/made",
    ];
    ensure!(ended.code == Some(0) && ended.stderr.is_empty() && lines == expected, "{ended:#?}");
    stopped(run(&["--", WAITS])?)?;
    Ok("its own command, another, and one that is asked to end".to_owned())
}

/// A container in the guest, made of one program, with its status; on file systems of its own, and with a network if one can
/// be had without privileges.
const PODMAN: &str = "set -e
mkdir -p /tmp/tree/bin && cp /bin/busybox /tmp/tree/bin/ && ln -s busybox /tmp/tree/bin/sh
tar -C /tmp/tree -c . | podman --log-level=error import - tiny >/dev/null
podman info --format '{{.Store.GraphDriverName}}'
podman run --rm tiny sh -c 'echo inside; exit 7' || echo $?
podman run --rm tiny sh -c 'read inside outside count </proc/self/uid_map; echo $outside'";

/// Who runs podman, and the number that root of a container has then.
const USERS: [(&str, &str); 2] = [("root", "0"), ("ann", "1000")];
/// Debian's podman takes whole copies for users otherwise.
const DRIVER: &str = "STORAGE_DRIVER=overlay";

/// podman in an image with it, as root and as a user without privileges.
pub fn podman(fixture: &Fixture, name: &str) -> Result<String> {
    let archive = podman_archive()?;
    if !archive.exists() {
        return Err(NotHere("there is no image with podman".to_owned()).into());
    }
    let kernel = kernel(name)?;
    for (user, inside) in USERS {
        let mut command = kite(fixture, &kernel)?;
        command.env("XDG_CACHE_HOME", fixture.file("cache"));
        command.args(["--user", user, "--env", DRIVER, "--image"]).arg(&archive);
        command.args(["--memory", "2G", "--", "bash", "-c", PODMAN]);
        contained(&ended(command, b"")?, inside).with_context(|| user.to_owned())?;
    }
    Ok("as root and as a user".to_owned())
}

/// The same where the root folder is the host's, which has podman: with the host's settings, and a user's own kite.
pub fn podman_here(fixture: &Fixture, name: &str) -> Result<String> {
    let engines = Engines::of_test(fixture, name, engines::PODMAN)?;
    for (user, inside) in USERS {
        let login = match user {
            "root" => String::new(),
            _ => format!(
                "setpriv --reuid {user} --regid {user} --init-groups \
                 env HOME=/home/{user} XDG_RUNTIME_DIR=/run/user/{inside} "
            ),
        };
        let script = PODMAN.replace('\'', "'\\''");
        let script = format!("{login}kite run --memory 2G --env {DRIVER} -- bash -c '{script}'");
        contained(&engines.run("", &script)?, inside).with_context(|| user.to_owned())?;
    }
    Ok("as root and as a user".to_owned())
}

/// Fails unless the containers were run, and root in them is this number.
fn contained(ended: &Ended, inside: &str) -> Result<()> {
    expect_output(ended, 0, &format!("overlay\ninside\n7\n{inside}\n"))
}

/// Where a guest has this program, which lists its tree: in memory, which is no part of that.
const LISTER: &str = "/run/lister";

/// Images with all that makes trouble, whose guests see what umoci unpacks.
pub fn trees(fixture: &Fixture, name: &str, images: &[&'static str]) -> Result<String> {
    let Some(cases) = guest::cases(images)? else {
        return Err(NotHere("there are no images for guests".to_owned()).into());
    };
    let kernel = kernel(name)?;
    let lister = fixture.file("lister");
    fs::create_dir_all(&lister).context("making a folder")?;
    fs::copy("/proc/self/exe", lister.join("xtask")).context("copying this program")?;
    let share = format!("{}:{LISTER}", lister.display());
    let program = format!("{LISTER}/xtask");
    let seen = |case: &guest::Case| -> Result<usize> {
        let mut command = kite(fixture, &kernel)?;
        command.env("XDG_CACHE_HOME", fixture.file("cache")).args(["--share", &share, "--image"]);
        command.arg(&case.reference).args(["--", &program, "guest-tree"]);
        let ended = ended(command, b"")?;
        let is_well = ended.code == Some(0) && ended.stderr.is_empty();
        ensure!(is_well, "{:?}: {}", ended.code, ended.stderr);
        case.check(&ended.stdout)
    };
    let (mut count, mut failed) = (0, Vec::new());
    for case in &cases {
        match seen(case) {
            Ok(files) => count += files,
            Err(error) => failed.push(format!("{}: {error:#}", case.name)),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(format!("{count} files in {} images", cases.len()))
}

/// SIGTERM becomes the signal that the image names, and kite ends with the command's status.
fn stopped(mut command: Command) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting kite")?;
    let mut stdout = child.stdout.take().context("there is an output")?;
    let mut first = [0; 6];
    std::io::Read::read_exact(&mut stdout, &mut first).context("waiting for the command")?;
    // It prints just before it is ready.
    std::thread::sleep(Duration::from_millis(500));
    let process = Pid::from_raw(Child::id(&child).cast_signed());
    kill(process, Signal::SIGTERM).context("asking kite to end")?;
    let code = wait(&mut child)?;
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut rest).context("reading what it printed")?;
    ensure!(code == Some(3) && rest == "stopped\n", "{code:?}: {rest:?}");
    Ok(())
}

fn expect(ended: &Ended, code: i32, stdout: &str) -> Result<()> {
    ensure!(ended.stderr.is_empty(), "no message was expected: {ended:#?}");
    expect_output(ended, code, stdout)
}

/// The same of what may say more on standard error.
fn expect_output(ended: &Ended, code: i32, stdout: &str) -> Result<()> {
    let printed = String::from_utf8_lossy(&ended.stdout);
    ensure!(ended.code == Some(code) && printed == stdout, "{code} and {stdout:?} were expected: {ended:#?}");
    Ok(())
}

/// An archive as `docker save` writes it, with a static shell for all that it holds; made once for tests on several kernels.
fn archive(fixture: &Fixture) -> Result<PathBuf> {
    let (tree, archive) = (fixture.file("tree"), fixture.file("image.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    for folder in ["bin", "etc", "root", "home/ann"] {
        fs::create_dir_all(tree.join(folder)).context("making the image's folders")?;
    }
    let busybox = host::program("busybox").context("there is no busybox")?;
    fs::copy(busybox, tree.join("bin/busybox")).context("copying the shell")?;
    fs::set_permissions(tree.join("bin/busybox"), Permissions::from_mode(0o755)).context("letting it run")?;
    for program in PROGRAMS {
        symlink("busybox", tree.join("bin").join(program)).context("naming a program")?;
    }
    for (at, to) in NONSENSE {
        symlink(to, tree.join(at)).context("making a link")?;
    }
    fs::write(tree.join("etc/passwd"), PASSWD).context("writing users")?;
    fs::write(tree.join("etc/group"), GROUP).context("writing groups")?;
    let layer = fixture.file("layer.tar");
    saved_image::pack(&tree, &layer)?;
    let config = json!({
        "User": "ann", "WorkingDir": "/srv/here", "Env": ["PATH=/bin", "GREETING=hello"],
        "Entrypoint": ["sh", "-c"], "Cmd": ["echo $GREETING; id; pwd; echo ~; hostname"],
        "StopSignal": "SIGUSR1"
    });
    saved_image::save(&layer, &config, &archive)?;
    Ok(archive)
}
