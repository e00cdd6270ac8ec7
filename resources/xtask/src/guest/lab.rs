//! Inside the lab: the host's root folder is put under a layer of memory, and the lab's command runs there.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, chdir, chroot};

use super::initrd::Initrd;
use super::{ROOT, appear, mount_all, mounted};
use crate::setup::Kernel;

/// Modules without which there is no lab.
const NEEDED: [&str; 6] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "kvm_amd"];
/// Modules that guests and their devices may use.
const USEFUL: [&str; 6] = ["virtio_rng", "tun", "vhost_net", "vhost_vsock", "veth", "bridge"];
/// The run's folder, which the host sees, too.
const LAB: &str = "/lab";
/// What is mounted in the command's root folder.
const PSEUDO: [(&str, &str); 7] = [
    ("dev", "devtmpfs"),
    ("proc", "proc"),
    ("sys", "sysfs"),
    ("run", "tmpfs"),
    ("dev/pts", "devpts"),
    ("dev/shm", "tmpfs"),
    ("sys/fs/cgroup", "cgroup2"),
];
/// Where the driver of the 9P transport lists its devices.
const TAGS: &str = "/sys/bus/virtio/drivers/9pnet_virtio";

/// Writes the lab's initrd for `kernel` to the file `path`.
///
/// # Errors
/// A needed module is missing, or the file cannot be written.
pub fn write_initrd(kernel: &Kernel, path: &Path) -> Result<()> {
    // By way of the kernel: a build that runs meanwhile may have replaced the file of that name.
    let program = File::open("/proc/self/exe").context("opening this program")?;
    Initrd { program, needed: &NEEDED, useful: &USEFUL, files: &[] }.write(kernel, path)
}

/// Runs the lab's command and writes its status down.
pub(super) fn run() -> Result<()> {
    super::prepare()?;
    mount_root().context("mounting the root folder")?;
    loopback_up().context("setting up the loopback interface")?;
    let (stdout, stderr) = (console("/dev/hvc0")?, console("/dev/hvc1")?);
    let status = command(stdout, stderr)?;
    let file = format!("{LAB}/status");
    fs::write(&file, status.to_string()).with_context(|| format!("writing {file}"))
}

fn mount_root() -> Result<()> {
    let plan9 = "trans=virtio,version=9p2000.L,msize=1048576";
    mounted("lab", LAB, "9p", plan9)?;
    mounted("host", "/host", "9p", &format!("{plan9},cache=loose,ro"))?;
    mounted("layer", "/layer", "tmpfs", "size=80%")?;
    for folder in ["/layer/upper", "/layer/work"] {
        fs::create_dir(folder).with_context(|| format!("making {folder}"))?;
    }
    mounted("root", ROOT, "overlay", "lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work")?;
    mount_all(ROOT, &PSEUDO)?;
    // udev would have made the one and opened the other to all.
    symlink("/proc/self/fd", format!("{ROOT}/dev/fd")).context("making /dev/fd")?;
    let tun = format!("{ROOT}/dev/net/tun");
    if Path::new(&tun).exists() {
        fs::set_permissions(&tun, Permissions::from_mode(0o666)).with_context(|| format!("opening {tun}"))?;
    }
    fs::create_dir_all(format!("{ROOT}/out")).context("making /out")?;
    if has_tag("out")? {
        mounted("out", &format!("{ROOT}/out"), "9p", plan9)?;
    }
    Ok(())
}

/// Whether QEMU shares a folder of this name.
fn has_tag(name: &str) -> Result<bool> {
    for device in fs::read_dir(TAGS).with_context(|| format!("listing {TAGS}"))? {
        let tag = fs::read(device?.path().join("mount_tag")).unwrap_or_default();
        if tag.strip_suffix(b"\0").unwrap_or(&tag) == name.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a console whose bytes pass unchanged, once its driver has made it.
fn console(path: &str) -> Result<File> {
    appear(path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("opening {path}"))?;
    let mut settings = tcgetattr(&file)?;
    cfmakeraw(&mut settings);
    tcsetattr(&file, SetArg::TCSANOW, &settings)?;
    Ok(file)
}

/// Runs the command to its end and whatever it leaves behind to theirs; answers its exit status.
fn command(mut stdout: File, mut stderr: File) -> Result<u8> {
    let mut child = Command::new("/proc/self/exe")
        .arg("lab-enter")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the command")?;
    let mut out = child.stdout.take().context("the command has an output")?;
    let mut err = child.stderr.take().context("the command has an error output")?;
    std::thread::scope(|scope| {
        scope.spawn(move || io::copy(&mut out, &mut stdout));
        scope.spawn(move || io::copy(&mut err, &mut stderr));
        let status = child.wait().context("waiting for the command")?;
        // The pipes end when nobody holds them. There may be nobody left to kill.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        let signal = status.signal().map(|signal| signal + 128);
        Ok(status.code().or(signal).and_then(|status| u8::try_from(status).ok()).unwrap_or(u8::MAX))
    })
}

/// The role of PID 1's child: goes into the root folder and becomes the command. Returns only if that fails.
pub fn enter() -> ExitCode {
    let error = match try_enter() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("lab: {error:#}");
    let missing = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    ExitCode::from(if missing == Some(io::ErrorKind::NotFound) { 127 } else { 126 })
}

fn try_enter() -> Result<std::convert::Infallible> {
    let read =
        |name: &str| fs::read(format!("{LAB}/{name}")).with_context(|| format!("reading the run's {name}"));
    let (argv, environ, cwd) = (read("argv")?, read("environ")?, read("cwd")?);
    let (argv, environ) = (words(&argv), words(&environ));
    let (name, arguments) = argv.split_first().context("no command")?;
    // Whoever was only put into a folder by chroot may make no user namespaces.
    chdir(ROOT).context("entering the root folder")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the root folder")?;
    chroot(".").context("making it the root folder")?;
    let cwd = OsStr::from_bytes(&cwd);
    chdir(cwd).with_context(|| format!("entering {}", cwd.display()))?;
    let variables = environ.iter().filter_map(|variable| {
        let at = variable.as_bytes().iter().position(|&byte| byte == b'=')?;
        Some((
            OsStr::from_bytes(&variable.as_bytes()[..at]),
            OsStr::from_bytes(&variable.as_bytes()[at + 1..]),
        ))
    });
    let error = Command::new(name).args(arguments).env_clear().envs(variables).env("LAB", "1").exec();
    Err(error).with_context(|| format!("running {}", name.display()))
}

/// The strings in `bytes`, each ended by a NUL.
fn words(bytes: &[u8]) -> Vec<&OsStr> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    bytes.split(|&byte| byte == 0).map(OsStr::from_bytes).collect()
}

/// Sets the flag IFF_UP of `lo`, as `ip link set lo up` does (`netdevice(7)`).
#[expect(unsafe_code, reason = "no safe wrapper sets a network interface's flags")]
fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a valid ifreq: it is a name of bytes and a union of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    let socket = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the socket is open, and the request is an ifreq that lives through the call.
    match unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
