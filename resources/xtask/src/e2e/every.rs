//! Every device at once on a machine that starts again, and every operation on a share: what a sandbox has to let through.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::command::{ended, kite};
use super::wire::SEVERAL;
use super::{Fixture, GUEST, HERE, SCRIPT, Wire, finish, kernel, noise, watched};
use crate::host;
use crate::machine::{Access, Machine, Net};
use crate::running::Running;

/// The first boot works with everything, takes a disk away from its driver while that reads and writes, and reboots; the
/// second one finds what was left.
const DEVICES: &str = r#"
set -e
port=$(grep -lx agent /sys/class/virtio-ports/*/name)
port=/dev/$(basename "${port%/name}")
if [ "$(head -c 5 /dev/vdb)" = again ]; then
    cmp -n 1048576 -i 1048576:0 /dev/vdb /dev/zero
    echo "second boot" >"$port"
    exit 0
fi
ip link set eth0 up
ip addr add $GUEST/24 dev eth0
ping -q -c 2 $HERE
ip link set eth1 up
ip link set eth2 up
printf 'x' >/dev/udp/$HERE/9
exec 3<>"$port"
echo question >&3
read -r answer <&3
[ "$answer" = answer ]
exec 3>&-
for disk in vdb vdc; do
    head -c 4M /dev/urandom >/tmp/noise
    dd if=/tmp/noise of=/dev/$disk bs=64k oflag=direct conv=fsync,notrunc status=none
    cmp -n 4194304 /tmp/noise /dev/$disk
    blkdiscard --offset 1M --length 1M /dev/$disk
    blkdiscard --zeroout --offset 2M --length 1M /dev/$disk
done
printf 'again' | dd of=/dev/vdb conv=fsync,notrunc status=none
blockdev --flushbufs /dev/vdb
while dd if=/dev/vdc of=/dev/null bs=1M iflag=direct status=none 2>/dev/null; do true; done &
sleep 1
basename "$(readlink /sys/block/vdc/device)" >/sys/bus/virtio/drivers/virtio_blk/unbind
wait
echo 'guest: reboots'
echo b >/proc/sysrq-trigger
sleep infinity
"#;

/// A host that answers through a port, and the same machine after a reboot.
pub fn devices(fixture: &Fixture) -> Result<String> {
    every_device(fixture, fixture.machine(&script())?)
}

/// The same on a PCI bus.
pub fn devices_on_pci(fixture: &Fixture) -> Result<String> {
    every_device(fixture, fixture.machine_on_pci(&script())?)
}

fn script() -> String {
    format!("GUEST={GUEST}\nHERE={HERE}\n{DEVICES}")
}

fn every_device(fixture: &Fixture, mut machine: Machine) -> Result<String> {
    let wire = Wire::new(fixture.user)?;
    let socket = fixture.file("agent");
    for (name, access) in [("every.img", Access::Write), ("forgets.img", Access::Ephemeral)] {
        let disk = fixture.file(name);
        noise(&disk, 32 << 20)?;
        machine.disks.push((disk, access));
    }
    machine.nets.push(Net::Tap(super::TAP.to_owned()));
    machine.nets.extend(host::program("passt").map(|_| Net::User));
    machine.stats = Some(fixture.file("every.json"));
    machine.cpus = 2;
    let mut command = machine.command(&fixture.vmm);
    wire.several(fixture.user)?;
    command.args(["--net", &format!("tap={SEVERAL},queues=2")]);
    command.arg("--port").arg(format!("agent={}", socket.display())).args(["--on-reboot", "restart"]);
    watched(Running::start(command, fixture.shown)?, |running| {
        let talk = std::thread::spawn(move || talk(&socket));
        finish(running)?;
        talk.join().map_err(|_| anyhow::anyhow!("the port's other end failed"))?
    })?;
    Ok(String::new())
}

/// The host's end of the port, in the first boot and in the second: a connection ends when the guest closes the port.
fn talk(socket: &Path) -> Result<()> {
    let (mut stream, line) = connect(socket)?;
    ensure!(line == "question\n", "the guest says {line:?} at first");
    stream.write_all(b"answer\n").context("answering the guest")?;
    drop(stream);
    let (_, line) = connect(socket)?;
    ensure!(line == "second boot\n", "the guest says {line:?} in the second boot");
    Ok(())
}

/// Connects until the guest says something.
fn connect(socket: &Path) -> Result<(UnixStream, String)> {
    let start = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(SCRIPT)).context("setting a time limit")?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).context("reading from the port")?;
            if !line.is_empty() {
                return Ok((stream, line));
            }
        }
        ensure!(start.elapsed() < SCRIPT, "nobody talks at {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every operation on files that a program can ask for.
pub fn share(fixture: &Fixture, name: &str) -> Result<String> {
    let folder = fixture.file("every-operation");
    fs::create_dir(&folder).context("making a folder")?;
    let mut command = kite(fixture, &kernel(name)?)?;
    if fixture.user() == 0 {
        command.args(["--env", "ROOT=1"]);
    }
    command.args(["--share", ".:rw", "--", "python3", "-c", OPERATIONS]).current_dir(&folder);
    let ended = ended(command, b"")?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .context("looking at the folder")?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .context("looking at the folder")?;
    names.sort_unstable();
    ensure!(names == ["fifo", "file", "folder", "hard", "soft"], "the folder has {names:?}");
    let length =
        File::open(folder.join("file")).and_then(|file| file.metadata()).context("looking at it")?.len();
    ensure!(length == 8192, "the file has {length} bytes");
    Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
}

const OPERATIONS: &str = r#"
import array, ctypes, fcntl, os, mmap, stat
os.umask(0o027)
fd = os.open("file", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
assert os.pwrite(fd, b"x" * 4096, 4096) == 4096
os.ftruncate(fd, 1 << 20); os.truncate("file", 8192)
os.posix_fallocate(fd, 0, 4096)
os.fsync(fd); os.fdatasync(fd); os.sync()
try: assert os.lseek(fd, 0, os.SEEK_DATA) in (0, 4096); assert os.lseek(fd, 4096, os.SEEK_HOLE) == 8192
except OSError as error: assert error.errno == 22
out = os.open("other", os.O_RDWR | os.O_CREAT | os.O_APPEND)
copy = os.open("copy", os.O_RDWR | os.O_CREAT)
assert os.copy_file_range(fd, copy, 4096, 4096, 0) == 4096 and os.pread(copy, 1, 4095) == b"x"
os.write(out, b"end")
try:
    direct = os.open("file", os.O_RDWR | os.O_DIRECT); page = mmap.mmap(-1, 4096)
    assert os.preadv(direct, [page], 4096) == 4096 and os.pwritev(direct, [page], 4096) == 4096
    os.close(direct)
except OSError as error: assert error.errno == 22
shared = mmap.mmap(fd, 8192); shared[0:5] = b"hello"; shared.flush(); shared.close()
assert os.pread(fd, 5, 0) == b"hello"
os.mkdir("made"); os.rename("made", "folder"); os.rmdir("folder"); os.mkdir("folder")
os.mkfifo("fifo"); os.symlink("file", "soft"); os.link("file", "hard"); assert os.readlink("soft") == "file"
os.rename("copy", "other"); os.unlink("other")
os.chmod("file", 0o600); os.chmod(fd, 0o604)
os.utime("file", (1, 2)); assert os.stat("file").st_mtime == 2
os.utime("soft", (3, 4), follow_symlinks=False)
for change in (lambda: os.setxattr("file", "user.k", b"v"), lambda: os.getxattr("file", "user.k"),
               lambda: os.listxattr("file"), lambda: os.removexattr("file", "user.k")):
    try: change()
    except OSError as error: assert error.errno in (95, 61), error
try:
    nameless = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o600); link = f"/proc/self/fd/{nameless}".encode()
    assert ctypes.CDLL(None).linkat(-100, link, -100, b"named", 0x400) == 0; os.unlink("named")
except OSError as error: assert error.errno == 95, error
flags = array.array("l", [0])
for code in (0x80086601, 0x40086602):
    try: fcntl.ioctl(fd, code, flags)
    except OSError as error: assert error.errno in (25, 95), error
assert os.statvfs(".").f_bsize and len(os.listdir(".")) == 5 and os.access("file", os.W_OK)
many = os.open("/usr/bin", os.O_RDONLY); assert len(os.listdir(many)) > 100
os.lseek(many, 0, os.SEEK_SET); assert os.listdir(many)
# The rest is root's.
if not os.environ.get("ROOT"): raise SystemExit
os.chown("file", 12, 34); os.chown(fd, 0, 0)
os.chmod(".", 0o777)
if not os.fork():
    os.setgid(1234); os.setuid(1234)
    made = os.open("theirs", os.O_RDWR | os.O_CREAT, 0o600); os.write(made, b"x")
    assert os.fstat(made).st_uid == 1234
    try: os.chown("file", 1234, 1234); os._exit(1)
    except PermissionError: pass
    os.unlink("theirs"); os._exit(0)
assert os.wait()[1] == 0
"#;
