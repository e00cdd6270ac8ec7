//! The description of a machine, and the command lines that run it: kite's, and QEMU's microvm machine for comparison.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::qemu;

/// A program that runs machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// kite, at this path.
    Kite(PathBuf),
    /// QEMU's microvm machine, whose disks use this kind of asynchronous I/O.
    Qemu(&'static str),
}

impl Vmm {
    /// The one of this name: `qemu`, or a path of kite's.
    pub fn named(name: &Path) -> Self {
        if name == Path::new("qemu") { Self::Qemu("threads") } else { Self::Kite(name.to_owned()) }
    }
}

/// What a disk's file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Written.
    Write,
    /// What the guest writes is forgotten.
    Ephemeral,
    /// The guest cannot write.
    ReadOnly,
}

/// The other end of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// A tap device that exists.
    Tap(String),
    /// This host's own network, without privileges.
    User,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Processors.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory: u64,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: PathBuf,
    /// More for the kernel's command line.
    pub append: String,
    /// Files that are disks, the first of them `/dev/vda`.
    pub disks: Vec<(PathBuf, Access)>,
    /// Network interfaces.
    pub nets: Vec<Net>,
    /// Which transport kite gives its devices, if not the usual one.
    pub transport: Option<&'static str>,
    /// Which console kite gives it, if not the usual one.
    pub console: Option<&'static str>,
    /// The file that kite is to tell of its exits in.
    pub stats: Option<PathBuf>,
}

impl Machine {
    /// One processor and 512 MiB, a serial console, no devices.
    pub fn new(kernel: &Path, initrd: &Path) -> Self {
        let (kernel, initrd) = (kernel.to_owned(), initrd.to_owned());
        let (disks, nets) = (Vec::new(), Vec::new());
        let (transport, console, stats) = (None, None, None);
        let (cpus, memory, append) = (1, 512, String::new());
        Self { cpus, memory, kernel, initrd, append, disks, nets, transport, console, stats }
    }

    /// The command that runs it.
    pub fn command(&self, vmm: &Vmm) -> Command {
        match vmm {
            Vmm::Kite(program) => self.kite(program),
            Vmm::Qemu(aio) => self.qemu(aio),
        }
    }

    fn kite(&self, program: &Path) -> Command {
        let mut command = kite_run(program, &self.kernel);
        command.arg("--initrd").arg(&self.initrd);
        command.args(["--cpus", &self.cpus.to_string(), "--memory", &format!("{}M", self.memory)]);
        command.args(["--append", &self.append]);
        if let Some(transport) = self.transport {
            command.args(["--transport", transport]);
        }
        if let Some(console) = self.console {
            command.args(["--console", console]);
        }
        if let Some(stats) = &self.stats {
            let mut option = OsString::from("--stats=");
            option.push(stats);
            command.arg(option);
        }
        for (path, access) in &self.disks {
            let mut disk = OsString::from("path=");
            disk.push(path);
            disk.push(match access {
                Access::Write => "",
                Access::Ephemeral => ",ephemeral",
                Access::ReadOnly => ",readonly",
            });
            command.arg("--disk").arg(disk);
        }
        for net in &self.nets {
            command.arg("--net").arg(match net {
                Net::Tap(name) => format!("tap={name}"),
                Net::User => "user".to_owned(),
            });
        }
        command
    }

    /// With virtio-mmio devices of version 1, as kite's are, and the tap served by QEMU itself.
    fn qemu(&self, aio: &str) -> Command {
        let mut command = qemu::microvm(self.memory);
        command.args(["-smp", &self.cpus.to_string(), "-global", "virtio-mmio.force-legacy=false"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        command.arg("-append").arg(format!("{} {}", qemu::CMDLINE, self.append));
        for (index, (path, access)) in self.disks.iter().enumerate() {
            let more = match access {
                Access::Write => "",
                Access::Ephemeral => ",snapshot=on",
                Access::ReadOnly => ",readonly=on",
            };
            let mut drive = OsString::from("file=");
            drive.push(path);
            drive.push(format!(
                ",if=none,id=d{index},format=raw,cache=writeback,aio={aio},discard=unmap{more}"
            ));
            command.arg("-drive").arg(drive);
            // The microvm machine gives the last of its slots to the first device: a machine's disks keep their order
            // by their addresses.
            let bus = 23 - index;
            command.args(["-device", &format!("virtio-blk-device,drive=d{index},bus=virtio-mmio-bus.{bus}")]);
        }
        for (index, net) in self.nets.iter().enumerate() {
            if let Net::Tap(name) = net {
                let tap = format!("tap,id=n{index},ifname={name},script=no,downscript=no,vhost=off");
                command.args(["-netdev", &tap, "-device", &format!("virtio-net-device,netdev=n{index}")]);
            }
        }
        command.args(["-device", "virtio-rng-device"]);
        command
    }
}

/// `kite run` with this kernel, locked in as [`sandbox`] says; the rest of the command line is the caller's.
pub fn kite_run(program: &Path, kernel: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--sandbox", sandbox(), "--kernel"]).arg(kernel);
    command
}

/// The `--sandbox` of every kite here: every layer is required where a host lets anybody have namespaces.
pub fn sandbox() -> &'static str {
    if namespaces().is_ok() { "require" } else { "auto" }
}

/// Whether this host lets anybody have namespaces.
///
/// # Errors
/// Why not.
pub fn namespaces() -> Result<(), &'static str> {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    let refusal = REFUSAL.get_or_init(|| {
        let tried = Command::new("unshare").args(["-Urmpniuf", "true"]).stdin(Stdio::null()).output();
        match tried {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(format!("unshare: {error}")),
        }
    });
    refusal.as_deref().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kite_is_told_of_every_device() {
        let machine = Machine {
            disks: vec![("a".into(), Access::Write), ("b".into(), Access::Ephemeral)],
            nets: vec![Net::Tap("t0".into()), Net::User],
            ..Machine::new(Path::new("k"), Path::new("i"))
        };
        let command = machine.command(&Vmm::Kite("kite".into()));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let words = words.join(" ");
        assert!(words.contains("--disk path=a --disk path=b,ephemeral --net tap=t0 --net user"), "{words}");
    }
}
