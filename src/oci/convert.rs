//! From `config.json` to the one description of a run.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use nix::mount::MsFlags;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::sysinfo::sysinfo;

use super::config::{self, Config, Mount, Process};
use super::resources;
use crate::spec::command::{CommandSpec, RootSpec, VariableSpec};
use crate::spec::container::{
    Capabilities, ContainerSpec, MountSource, MountSpec, ProcessSpec, ResourceLimit, capability, resource,
};
use crate::spec::machine::{BootSpec, MachineSpec, default_memory};
use crate::spec::number::{MIB, memory_size};
use crate::spec::{MeasureSpec, RunSpec};

/// Annotations that say how the machine is built.
const CPUS: &str = "kite.cpus";
const MEMORY: &str = "kite.memory";
const KERNEL: &str = "kite.kernel";
/// Names the kernel where no annotation does.
const KERNEL_VARIABLE: &str = "KITE_KERNEL";
/// RAM beside a container's own limit, in bytes: the guest's kernel and what it has for the container's files.
const KERNEL_MEMORY: u64 = 128 * MIB;
/// The most vCPUs that a document may ask for, as Linux uses in a guest.
const MOST_CPUS: u64 = 255;

/// What mount options mean to mount(2): the name, the flag, and whether it is taken away.
const FLAGS: [(&str, MsFlags, bool); 18] = [
    ("ro", MsFlags::MS_RDONLY, false),
    ("rw", MsFlags::MS_RDONLY, true),
    ("nosuid", MsFlags::MS_NOSUID, false),
    ("suid", MsFlags::MS_NOSUID, true),
    ("nodev", MsFlags::MS_NODEV, false),
    ("dev", MsFlags::MS_NODEV, true),
    ("noexec", MsFlags::MS_NOEXEC, false),
    ("exec", MsFlags::MS_NOEXEC, true),
    ("sync", MsFlags::MS_SYNCHRONOUS, false),
    ("async", MsFlags::MS_SYNCHRONOUS, true),
    ("dirsync", MsFlags::MS_DIRSYNC, false),
    ("noatime", MsFlags::MS_NOATIME, false),
    ("atime", MsFlags::MS_NOATIME, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, false),
    ("diratime", MsFlags::MS_NODIRATIME, true),
    ("relatime", MsFlags::MS_RELATIME, false),
    ("norelatime", MsFlags::MS_RELATIME, true),
    ("strictatime", MsFlags::MS_STRICTATIME, false),
];
/// Options that say how mounts of one host are seen in another namespace, or how files are labelled there: a machine has its own.
const WITHOUT_MEANING: [&str; 17] = [
    "bind",
    "rbind",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "defaults",
    "remount",
    "tmpcopyup",
    "copy-symlink",
    "idmap",
    "ridmap",
    "z",
];

/// Takes a single file of the host's, which may be written or not, to where the machine finds it; gives its name there.
pub type Stage<'a> = dyn FnMut(&Path, bool) -> anyhow::Result<OsString> + 'a;

/// The run that a container of a `bundle` is. Single files that it shows go through `stage`.
///
/// # Errors
/// Something in the document makes no sense, in one line that names it.
pub fn run_spec(config: &Config, bundle: &Path, stage: &mut Stage<'_>) -> anyhow::Result<RunSpec> {
    let process = config.process.as_ref().context("config.json has no process")?;
    let root = config.root.as_ref().context("config.json has no root")?;
    let folder = bundle.join(&root.path);
    ensure!(folder.is_dir(), "root.path {} is not a folder", folder.display());
    let mounts = config.mounts.iter().map(|mount| mount_spec(mount, bundle, stage));
    let container = ContainerSpec {
        readonly: root.readonly,
        hostname: config.hostname.clone(),
        terminal: process.terminal,
        process: process_spec(process)?,
        mounts: mounts.collect::<Result<_, _>>()?,
        sysctl: config.linux.sysctl.clone().into_iter().collect(),
        masked: config.linux.masked_paths.clone(),
        read_only: config.linux.readonly_paths.clone(),
        files: None,
    };
    let command = CommandSpec {
        argv: process.args.iter().map(OsString::from).collect(),
        root: Some(RootSpec::Folder(folder)),
        cwd: Some(process.cwd.clone()),
        env: environment(process),
        clear_env: true,
        container: Some(container),
        ..CommandSpec::default()
    };
    let spec = RunSpec::new(machine(config)?, Some(command), MeasureSpec::default(), false);
    spec.validate().map_err(|why| anyhow!("config.json: {why}"))?;
    Ok(spec)
}

/// The machine, as large as annotations or else limits say.
fn machine(config: &Config) -> anyhow::Result<MachineSpec> {
    let annotation = |name: &str| config.annotations.get(name).map(String::as_str);
    let resources = &config.linux.resources;
    let cpus = match (annotation(CPUS), resources::processors(&resources.cpu)?) {
        (Some(text), _) => {
            text.parse().ok().filter(|cpus| (1..=MOST_CPUS).contains(cpus)).with_context(|| {
                format!(
                    "annotation {CPUS} is '{}': it is a number from 1 to {MOST_CPUS}",
                    text.escape_debug()
                )
            })?
        }
        (None, Some(processors)) => processors.clamp(1, online()),
        (None, None) => 1,
    };
    let memory = match (annotation(MEMORY), resources::bytes(resources.memory.limit)) {
        (Some(text), _) => memory_size(text).map_err(|why| anyhow!("annotation {MEMORY}: {why}"))?,
        // As with a container, a limit may be more than there is.
        (None, Some(limit)) => limit.saturating_add(KERNEL_MEMORY).next_multiple_of(MIB).min(most_memory()),
        (None, None) => default_memory(true),
    };
    let named = std::env::var_os(KERNEL_VARIABLE).filter(|path| !path.is_empty());
    let kernel = annotation(KERNEL).map(PathBuf::from).or_else(|| named.map(PathBuf::from));
    let boot = BootSpec { kernel, ..BootSpec::default() };
    Ok(MachineSpec { cpus: cpus as u32, memory, boot, ..MachineSpec::default() })
}

/// How much memory this host has, in bytes.
fn most_memory() -> u64 {
    sysinfo().map_or(u64::MAX, |info| info.ram_total()) / MIB * MIB
}

/// How many processors this host has for a machine.
fn online() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64).min(MOST_CPUS)
}

/// Who a process is.
///
/// # Errors
/// A name in it is not known.
pub fn process_spec(process: &Process) -> anyhow::Result<ProcessSpec> {
    process.check().map_err(|why| anyhow!(why))?;
    let limit = |limit: &config::Rlimit| {
        let resource = resource(&limit.kind)
            .with_context(|| format!("process.rlimits: there is no limit '{}'", limit.kind.escape_debug()))?;
        Ok(ResourceLimit { resource, soft: limit.soft.min(limit.hard), hard: limit.hard })
    };
    Ok(ProcessSpec {
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids.clone(),
        umask: process.user.umask.map(|umask| umask & 0o777),
        limits: process.rlimits.iter().map(limit).collect::<anyhow::Result<_>>()?,
        // As runc has it: a process without any in its document has none.
        capabilities: Some(process.capabilities.as_ref().map(capabilities).unwrap_or_default()),
        no_new_privileges: process.no_new_privileges,
        oom_score: process.oom_score_adj.map(|score| score.clamp(-1000, 1000)),
    })
}

/// Bits for names. A name that is not known is a capability that this kite, and so the guest's process, does not have.
fn capabilities(names: &config::Capabilities) -> Capabilities {
    let bits =
        |names: &[String]| names.iter().filter_map(|name| capability(name)).fold(0, |all, bit| all | bit);
    Capabilities {
        bounding: bits(&names.bounding),
        effective: bits(&names.effective),
        permitted: bits(&names.permitted),
        inheritable: bits(&names.inheritable),
        ambient: bits(&names.ambient),
    }
}

/// A process's variables.
pub fn environment(process: &Process) -> Vec<VariableSpec> {
    let pairs = process.env.iter().filter_map(|variable| variable.split_once('='));
    let named = pairs.filter(|(name, _)| !name.is_empty());
    named.map(|(name, value)| VariableSpec { name: name.to_owned(), value: Some(value.to_owned()) }).collect()
}

fn mount_spec(mount: &Mount, bundle: &Path, stage: &mut Stage<'_>) -> anyhow::Result<MountSpec> {
    let at = &mount.destination;
    let what = || format!("mounts: {}", at.display());
    ensure!(at.is_absolute() && !at.to_string_lossy().contains('\0'), "{}: it does not begin with /", what());
    let (flags, mut data) = options(&mount.options);
    let is_bind = mount.options.iter().any(|option| option == "bind" || option == "rbind");
    let kind = mount.kind.as_deref().unwrap_or_default();
    let source = if is_bind || kind == "bind" {
        let source =
            bundle.join(mount.source.as_deref().with_context(|| format!("{}: it has no source", what()))?);
        // What a program shares by memory would not be shared: a folder's files are not mapped in two kernels at once.
        match at == Path::new("/dev/shm") {
            true => {
                data = shared_memory(&source);
                MountSource::Kernel("tmpfs".to_owned())
            }
            false => bind(&source, !flags.contains(MsFlags::MS_RDONLY), stage).with_context(what)?,
        }
    } else {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        ensure!(!kind.is_empty() && kind.bytes().all(fits), "{}: it has no type of file system", what());
        MountSource::Kernel(if kind == "cgroup" { "cgroup2".to_owned() } else { kind.to_owned() })
    };
    let data = if matches!(source, MountSource::Kernel(_)) { data } else { String::new() };
    Ok(MountSpec { source, at: at.clone(), flags: flags.bits(), data })
}

/// The options of the guest's own shared memory in the place of the engine's, which is as large.
fn shared_memory(source: &Path) -> String {
    let engines = statfs(source).ok().filter(|it| it.filesystem_type() == TMPFS_MAGIC);
    let size = engines.map(|it| it.blocks().saturating_mul(it.block_size() as u64)).filter(|size| *size > 0);
    format!("mode=1777{}", size.map(|size| format!(",size={size}")).unwrap_or_default())
}

fn bind(source: &Path, writable: bool, stage: &mut Stage<'_>) -> anyhow::Result<MountSource> {
    let metadata = fs::metadata(source).with_context(|| format!("cannot look at {}", source.display()))?;
    let kind = metadata.file_type();
    if metadata.is_dir() {
        return Ok(MountSource::Folder(source.to_owned()));
    }
    if metadata.is_file() {
        return Ok(MountSource::File(stage(source, writable)?));
    }
    // A device such as /dev/null is the guest's own of the same name.
    if kind.is_char_device() && source.starts_with("/dev") {
        return Ok(MountSource::Inside(source.to_owned()));
    }
    bail!("{} is no folder, file or device that a machine can show", source.display())
}

/// The flags of options, and what is the file system's own.
fn options(options: &[String]) -> (MsFlags, String) {
    let (mut flags, mut own) = (MsFlags::empty(), Vec::new());
    for option in options {
        let option = option.as_str();
        if let Some((_, flag, is_taken)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            flags.set(*flag, !is_taken);
        } else if !WITHOUT_MEANING.contains(&option) && option != "Z" && !option.starts_with("context=") {
            own.push(option);
        }
    }
    (flags, own.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(json: &str) -> anyhow::Result<RunSpec> {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        fs::write(bundle.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(bundle.path().join("config.json"), json).unwrap();
        let config = Config::of_bundle(bundle.path())?;
        run_spec(&config, bundle.path(), &mut |path, _| Ok(path.file_name().unwrap().to_owned()))
    }

    fn document(more: &str) -> String {
        format!(
            r#"{{"ociVersion": "1.0.2", "root": {{"path": "rootfs", "readonly": true}}, "hostname": "box",
            "process": {{"args": ["sh", "-c", "true"], "cwd": "/", "env": ["A=b=c", "odd"],
            "user": {{"uid": 1, "gid": 2, "additionalGids": [3]}}, "capabilities": {{"bounding": ["CAP_CHOWN", "CAP_NEW"]}},
            "rlimits": [{{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 8}}]}}{more}}}"#
        )
    }

    #[test]
    fn a_bundle_becomes_a_run() {
        let spec = converted(&document(
            r#", "mounts": [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "ro", "rw", "size=65536k"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["rbind", "ro", "rprivate"]}],
            "linux": {"resources": {"memory": {"limit": 67108864}, "cpu": {"quota": 1000}}}, "unknown": {"x": []}"#,
        ))
        .unwrap();
        assert_eq!((spec.machine.cpus, spec.machine.memory), (1, 192 * MIB));
        let container = spec.command.unwrap().container.unwrap();
        assert!(container.readonly && container.hostname.as_deref() == Some("box"));
        assert_eq!(container.process.capabilities.unwrap().bounding, 1);
        assert_eq!(container.process.limits, [ResourceLimit { resource: 7, soft: 8, hard: 8 }]);
        let [tmp, hosts] = &container.mounts[..] else { panic!("{:?}", container.mounts) };
        assert_eq!((tmp.flags, tmp.data.as_str()), (MsFlags::MS_NOSUID.bits(), "size=65536k"));
        assert_eq!(hosts.source, MountSource::File("hosts".into()));
    }

    #[test]
    fn annotations_size_the_machine() {
        let spec = converted(&document(
            r#", "annotations": {"kite.cpus": "3", "kite.memory": "256M", "kite.kernel": "/boot/k"}"#,
        ))
        .unwrap();
        assert_eq!((spec.machine.cpus, spec.machine.memory), (3, 256 * MIB));
        assert_eq!(spec.machine.boot.kernel, Some("/boot/k".into()));
        for (name, value) in [("cpus", "0"), ("cpus", "1000"), ("cpus", "x"), ("memory", "1"), ("memory", "")]
        {
            let more = format!(r#", "annotations": {{"kite.{name}": "{value}"}}"#);
            assert!(converted(&document(&more)).is_err(), "{more}");
        }
    }

    #[test]
    fn an_annotation_goes_before_a_limit_and_a_limit_before_the_default() {
        let limits =
            r#""linux": {"resources": {"memory": {"limit": 1073741825}, "cpu": {"quota": 1, "cpus": "0"}}}"#;
        let (most, own) = ((1024 + 128 + 1).min(most_memory() / MIB), default_memory(true) / MIB);
        for (annotations, limits, expected) in [
            ("", "", (1, own)),
            ("", limits, (1, most)),
            (r#""kite.cpus": "3""#, limits, (3, most)),
            (r#""kite.memory": "256M""#, limits, (1, 256)),
            (r#""kite.cpus": "2", "kite.memory": "300M""#, limits, (2, 300)),
            (
                "",
                r#""linux": {"resources": {"memory": {"limit": -1}, "cpu": {"quota": 0, "period": 9}}}"#,
                (1, own),
            ),
            ("", r#""linux": {"resources": {"memory": {"limit": 9223372036854771712}}}"#, (1, own)),
        ] {
            let limits = if limits.is_empty() { String::new() } else { format!(", {limits}") };
            let spec =
                converted(&document(&format!(r#", "annotations": {{{annotations}}}{limits}"#))).unwrap();
            assert_eq!((spec.machine.cpus, spec.machine.memory / MIB), expected, "{annotations} {limits}");
        }
        // A wrong one is not passed over for a limit that would do.
        assert!(
            converted(&document(&format!(r#", "annotations": {{"kite.memory": "x"}}, {limits}"#))).is_err()
        );
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_processors_of_this_host() {
        for (cpu, most) in [
            (r#"{"quota": 100001}"#, 2),
            (r#"{"quota": 3, "period": 1}"#, 3),
            (r#"{"quota": 9000000, "cpus": "0-1"}"#, 2),
            (r#"{"quota": 9223372036854775807, "period": 1}"#, u64::MAX),
        ] {
            let spec =
                converted(&document(&format!(r#", "linux": {{"resources": {{"cpu": {cpu}}}}}"#))).unwrap();
            assert_eq!(u64::from(spec.machine.cpus), online().min(most), "{cpu}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_one_line() {
        for (json, expected) in [
            ("", "EOF"),
            ("{}", "missing field"),
            (r#"{"ociVersion": "2.0.0"}"#, "versions 1.x"),
            (r#"{"ociVersion": "1.0.0"}"#, "no process"),
            (r#"{"ociVersion": "1.0.0", "process": {"args": [], "cwd": "/"}}"#, "args is empty"),
            (r#"{"ociVersion": "1.0.0", "process": {"args": [""], "cwd": "/"}}"#, "empty word"),
            (r#"{"ociVersion": "1.0.0", "process": {"args": ["x"], "cwd": "x"}}"#, "does not begin with /"),
            (r#"{"ociVersion": "1.0.0", "process": {"args": ["x\u0000"], "cwd": "/"}}"#, "NUL"),
            (r#"{"ociVersion": "1.0.0", "process": {"args": ["x"], "cwd": "/"}}"#, "no root"),
            (
                r#"{"ociVersion": "1.0.0", "process": {"args": ["x"], "cwd": "/"}, "root": {"path": "x"}}"#,
                "not a folder",
            ),
            (&document(r#", "mounts": [{"destination": "x", "type": "tmpfs"}]"#), "begin with /"),
            (&document(r#", "mounts": [{"destination": "/x", "type": "../x"}]"#), "no type of file system"),
            (&document(r#", "mounts": [{"destination": "/x", "type": "bind"}]"#), "no source"),
            (
                &document(r#", "mounts": [{"destination": "/x", "type": "bind", "source": "none"}]"#),
                "cannot look at",
            ),
        ] {
            let error = format!("{:#}", converted(json).unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{json}: {error}");
        }
    }

    /// A document with one byte changed, cut, or a piece of it repeated is a run or one error, and nothing worse.
    #[test]
    fn broken_documents_are_refused_or_run() {
        let whole =
            document(r#", "linux": {"resources": {"memory": {"limit": -1}}, "sysctl": {"a.b": "1"}}"#)
                .into_bytes();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let mut refused = 0;
        for _ in 0..5000 {
            let mut bytes = whole.clone();
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes.truncate(at),
                2 => bytes.splice(at..at, *b"99999999999999999999").for_each(drop),
                _ => drop(bytes.splice(at..at, whole[..random(whole.len())].iter().copied())),
            }
            let config = serde_json::from_slice::<Config>(&bytes);
            let run = config
                .map_err(anyhow::Error::from)
                .and_then(|config| run_spec(&config, Path::new("/"), &mut |_, _| bail!("there is no file")));
            refused += usize::from(run.is_err());
        }
        assert!(refused > 1000);
    }
}
