//! `create`: everything is checked, and a monitor waits for `start`.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail, ensure};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

use super::config::Config;
use super::log::Log;
use super::network::{self, Namespace};
use super::protocol::{self, Request};
use super::state::{FAILURE, FILES, Folder, PROCESSES, RUN, Record, Status, VERSION, begun};
use super::{convert, group, hooks, this_program};
use crate::host::atomic_file;
use crate::lifecycle;
use crate::spec::RunSpec;
use crate::spec::device::{DeviceSpec, PortSpec};
use crate::spec::{frames, wire};

/// How long a monitor may take to begin.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked meanwhile.
const TICK: Duration = Duration::from_millis(2);
/// The longest single file that is copied where it cannot be linked, in bytes.
const LONGEST: u64 = 16 << 20;

/// What `create` is asked.
pub struct Options<'a> {
    /// Where containers are.
    pub root: &'a Path,
    /// The name of the new one.
    pub id: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
    /// The file for its monitor's number.
    pub pid_file: Option<&'a Path>,
    /// Where the engine waits for its terminal.
    pub console: Option<&'a Path>,
    /// The monitor stays in its caller's session.
    pub foreground: bool,
}

/// Makes a container; answers its monitor.
///
/// # Errors
/// The bundle makes no sense, the container is there already, or the host refuses something. Nothing is there then.
pub fn create(options: &Options<'_>, log: &Log) -> anyhow::Result<Child> {
    let bundle = fs::canonicalize(options.bundle)
        .with_context(|| format!("cannot find bundle {}", options.bundle.display()))?;
    let config = Config::of_bundle(&bundle)?;
    check_console(&config, options)?;
    note(&config, log);
    let folder = Folder::make(options.root, options.id)?;
    let made = begin(options, &config, &bundle, &folder, log);
    made.inspect_err(|_| {
        let _ = folder.record().and_then(|record| group::remove(&record));
        // What is missing of it is no reason to say less of why.
        let _ = folder.remove();
    })
}

fn check_console(config: &Config, options: &Options<'_>) -> anyhow::Result<()> {
    let wants = config.process.as_ref().is_some_and(|process| process.terminal);
    ensure!(wants || options.console.is_none(), "--console-socket is for a process with a terminal");
    ensure!(
        !wants || options.console.is_some() || options.foreground,
        "process.terminal needs --console-socket, where the engine takes the terminal"
    );
    Ok(())
}

/// Says in the log what of the document means nothing in a machine.
fn note(config: &Config, log: &Log) {
    let process = config.process.as_ref();
    let without = [
        (config.linux.seccomp.is_some(), "linux.seccomp"),
        (process.is_some_and(|it| it.apparmor_profile.is_some()), "process.apparmorProfile"),
        (process.is_some_and(|it| it.selinux_label.is_some()), "process.selinuxLabel"),
        (!config.hooks.start_container.is_empty(), "hooks.startContainer"),
    ];
    let names: Vec<_> = without.iter().filter(|(is_there, _)| *is_there).map(|(_, name)| *name).collect();
    if !names.is_empty() {
        log.warning(&format!("{} of config.json: without effect in a machine of its own", names.join(", ")));
    }
}

fn begin(
    options: &Options<'_>,
    config: &Config,
    bundle: &Path,
    folder: &Folder,
    log: &Log,
) -> anyhow::Result<Child> {
    let spec = machine(config, bundle, folder)?;
    let network = Namespace::of(&config.linux);
    check(&spec, &network)?;
    atomic_file::write(&folder.path.join(RUN), |file| file.write_all(spec.to_json().as_bytes()))?;
    let mut command = this_program(&fs::canonicalize(options.root)?);
    command.args(["monitor", options.id]);
    command.args(options.console.into_iter().flat_map(|socket| [Path::new("--console-socket"), socket]));
    // The machine reads the terminal of its session; without one, what is typed there is for this process alone.
    let has_terminal = config.process.as_ref().is_some_and(|process| process.terminal);
    command.args((options.foreground && has_terminal).then_some("--foreground"));
    match &network {
        Namespace::Host => &mut command,
        Namespace::At(path) => command.arg("--network").arg(path),
        Namespace::Own => command.arg("--own-network"),
    };
    let mut monitor = command.spawn().context("cannot start a monitor")?;
    let mut enter = |record: &mut Record| group::enter(config, spec.machine.memory, folder, record, log);
    let done = introduce(options, config, bundle, folder, &mut monitor, &mut enter);
    done.inspect_err(|_| {
        let _ = monitor.kill();
        let _ = monitor.wait();
    })?;
    Ok(monitor)
}

/// Writes down which process the monitor is, once it listens, and runs the hooks of this moment.
fn introduce(
    options: &Options<'_>,
    config: &Config,
    bundle: &Path,
    folder: &Folder,
    monitor: &mut Child,
    enter: &mut dyn FnMut(&mut Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let pid = monitor.id() as i32;
    let mut record = Record {
        oci_version: VERSION.to_owned(),
        id: options.id.to_owned(),
        status: Status::Creating,
        pid,
        begun: begun(pid).unwrap_or_default(),
        bundle: bundle.to_owned(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        annotations: config.annotations.clone(),
        group: None,
    };
    // Whatever becomes of this process, `delete --force` finds the monitor.
    folder.write_record(&record)?;
    enter(&mut record)?;
    let since = Instant::now();
    while let Err(error) = protocol::ask(folder, &Request::Ping) {
        if monitor.try_wait().context("cannot wait for the monitor")?.is_some() {
            let why = fs::read_to_string(folder.path.join(FAILURE));
            bail!(why.unwrap_or_else(|_| "the container's monitor has ended".to_owned()));
        }
        if since.elapsed() > PATIENCE {
            return Err(error.context("the container's monitor does not begin"));
        }
        sleep(TICK);
    }
    let state = record.to_json();
    for list in [&config.hooks.prestart, &config.hooks.create_runtime, &config.hooks.create_container] {
        hooks::run(list, &state)?;
    }
    record.status = Status::Created;
    folder.write_record(&record)?;
    options.pid_file.map_or(Ok(()), |path| write_pid(path, pid))
}

/// Whether the machine can be begun, as far as that is known before its network is.
fn check(spec: &RunSpec, network: &Namespace) -> anyhow::Result<()> {
    let mut spec = spec.clone();
    if *network != Namespace::Host {
        spec.machine.devices.push(DeviceSpec::Net(network::by_passt()));
    }
    lifecycle::check(&spec)
}

/// Writes a process's number as engines read it, without a line break.
///
/// # Errors
/// The file cannot be written.
pub fn write_pid(path: &Path, pid: i32) -> anyhow::Result<()> {
    atomic_file::write(path, |file| write!(file, "{pid}"))
}

/// The run that the machine is.
fn machine(config: &Config, bundle: &Path, folder: &Folder) -> anyhow::Result<RunSpec> {
    let mut count = 0;
    let mut stage = |path: &Path, writable: bool| {
        count += 1;
        stage(folder, path, writable, count)
    };
    let mut spec = convert::run_spec(config, bundle, &mut stage)?;
    let path = folder.path.canonicalize().context("cannot find the container's folder")?;
    let port = PortSpec { name: frames::PORT.to_owned(), path: path.join(PROCESSES) };
    spec.machine.devices.push(DeviceSpec::Port(port));
    if let Some(container) =
        spec.command.as_mut().and_then(|command| command.container.as_mut()).filter(|_| count > 0)
    {
        for (tag, _) in wire::FILES {
            DirBuilder::new().recursive(true).mode(0o700).create(path.join(FILES).join(tag))?;
        }
        container.files = Some(path.join(FILES));
    }
    spec.validate().map_err(|why| anyhow!("config.json: {why}"))?;
    Ok(spec)
}

/// Gives a single file a name in the folder that the guest sees: another name of the same file where it has the same file
/// system, or else a copy of it as it is now.
fn stage(folder: &Folder, path: &Path, writable: bool, number: usize) -> anyhow::Result<OsString> {
    let (tag, _) = wire::FILES[usize::from(writable)];
    let place: PathBuf = folder.path.join(FILES).join(tag);
    DirBuilder::new().recursive(true).mode(0o700).create(&place).context("cannot make a folder for files")?;
    let name = OsString::from(number.to_string());
    let to = place.join(&name);
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "{} is no file any more", path.display());
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    if linkat(AT_FDCWD, opened.as_str(), AT_FDCWD, &to, AtFlags::AT_SYMLINK_FOLLOW).is_ok() {
        return Ok(name);
    }
    ensure!(metadata.len() <= LONGEST, "{} is on another file system, and too long to copy", path.display());
    let mut copy = File::options().write(true).create_new(true).open(&to)?;
    std::io::copy(&mut std::io::Read::take(&file, LONGEST), &mut copy)?;
    // Who may not give it away keeps it, and no set-user-ID with it.
    let is_given = fchown(&copy, Some(metadata.uid()), Some(metadata.gid())).is_ok();
    let mode = metadata.mode() & if is_given { 0o7777 } else { 0o777 };
    copy.set_permissions(Permissions::from_mode(mode))?;
    Ok(name)
}
