//! What `kite run` boots: which kernel, which initrd, which command line.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use boot::Piece;
use boot::initramfs;
use boot::kallsyms::Files;
use boot::kernel::{self, Image, Protocol};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::devices::Devices;
use super::modules;
use crate::host::messages;
use crate::session::Conventions;
use crate::spec::machine::{BootSpec, ConsoleSpec};
use crate::spec::{MachineSpec, RunSpec, wire};
use crate::vm::memory::SystemFiles;

/// kite's own command line behind the console: a panic ends the guest at once, by a warm reset, which [`super`] tells
/// from a reboot; and there are no other serial ports to look for.
const CMDLINE: &str = "panic=-1 reboot=panic_warm";
/// What is behind it: that there is no PCI to look for, or else none at ports; and one serial port.
const NO_PCI: &str = " pci=off";
const NO_PCI_PORTS: &str = " pci=noearly";
const UARTS: &str = " 8250.nr_uarts=1";
/// kite itself, whatever has become of its file.
const ITSELF: &str = "/proc/self/exe";

/// What is booted, but for the initrd.
pub(super) struct Boot {
    pub image: Image,
    /// The kernel's file.
    pub path: PathBuf,
    /// Files that may have its symbols.
    pub symbols: Files,
    /// Which of the files that it and the initrd are made of are the system's.
    pub system: SystemFiles,
    pub cmdline: String,
    /// What the initrd is called.
    pub module: String,
    /// What a reset of the guest's means.
    pub conventions: Conventions,
    /// The folder of its modules.
    pub modules: Option<PathBuf>,
    /// What kite's own `/init` is to do, as it is written to the initrd.
    pub command: Option<Vec<u8>>,
}

impl Boot {
    pub fn prepare(spec: &RunSpec) -> anyhow::Result<Self> {
        let options = &spec.machine.boot;
        let (path, image) = open(spec)?;
        let multiboot = image.protocol == Protocol::Multiboot;
        let (cmdline, conventions) = match multiboot {
            true => (multiboot_command_line(options, &path), Conventions::None),
            false => command_line(spec),
        };
        let unit_test = spec.machine.test_devices && !image.is_linux();
        let conventions = if unit_test { Conventions::None } else { conventions };
        ensure!(
            cmdline.len() <= image.cmdline_max,
            "the kernel command line has {} bytes, and this kernel takes {}",
            cmdline.len(),
            image.cmdline_max
        );
        ensure!(!cmdline.contains(['\0', '\n']), "the kernel command line holds a NUL or a line break");
        if let Some(why) = refusal(&image).filter(|_| !options.force) {
            bail!(why);
        }
        let modules = modules::folder(options, &path, image.version().as_deref());
        let module = options.initrd.as_deref().map(one_word).unwrap_or_default();
        let symbols = Files::of(&path, image.version().as_deref(), modules.as_deref());
        let files = [path.as_path(), Path::new(ITSELF)].into_iter().chain(options.initrd.as_deref());
        let system = SystemFiles::among(files);
        Ok(Self { image, path, symbols, system, cmdline, module, conventions, modules, command: None })
    }
}

/// The kernel of a run, which has one that fits its command.
///
/// # Errors
/// There is none, or it is another kind of kernel.
pub(super) fn open(spec: &RunSpec) -> anyhow::Result<(PathBuf, Image)> {
    let (options, has_command) = (&spec.machine.boot, spec.command.is_some());
    let path = kernel_path(options.kernel.as_deref())?;
    let image = Image::open(&path).with_context(|| format!("cannot boot {}", path.display()))?;
    ensure!(
        image.protocol != Protocol::Multiboot || !has_command,
        "{} is a Multiboot image, and a command needs Linux",
        path.display()
    );
    // Every Linux names its version; what does not would only crash.
    ensure!(
        !has_command || options.force || image.version().is_some(),
        "{} is no Linux kernel, and a command needs one; --force tries it",
        path.display()
    );
    Ok((path, image))
}

/// The initrd's parts: the user's, or one made of kite itself and the kernel's modules.
pub(super) fn initrd(spec: &MachineSpec, boot: &Boot, devices: &Devices) -> anyhow::Result<Vec<Piece>> {
    match &spec.boot.initrd {
        Some(path) => read_initrd(path),
        // Only Linux runs `/init`.
        None if boot.image.protocol == Protocol::Multiboot => Ok(Vec::new()),
        None => build_initrd(spec, boot, devices),
    }
}

/// Names the kernel to the user that only the current folder names.
pub(super) fn say_which_is_built(options: &BootSpec) {
    if let Some(path) = kernel::built(Path::new("")).filter(|_| options.kernel.is_none()) {
        messages::complain(&format!("the kernel is {}, built in this folder", path.display()));
    }
}

/// The kernel that is named, else the one that was built in the current folder, else the newest that is installed.
pub(super) fn kernel_path(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let named = named.map(Path::to_owned).or_else(|| kernel::built(Path::new("")));
    kernel::choose(named.as_deref(), Path::new("/")).map_err(|error| anyhow!("{error}: {}", error.fix()))
}

fn command_line(spec: &RunSpec) -> (String, Conventions) {
    let options = &spec.machine.boot;
    let mut line = match &options.cmdline {
        Some(line) => line.clone(),
        None => {
            let pci = if spec.machine.has_pci() { NO_PCI_PORTS } else { NO_PCI };
            format!("{}{} {CMDLINE}{pci}{UARTS}", screen(spec), console(spec))
        }
    };
    if let Some(more) = &options.append {
        line.push(' ');
        line.push_str(more);
    }
    let warm = |word: &str| {
        word.strip_prefix("reboot=").is_some_and(|how| how.split(',').any(|it| it.starts_with('w')))
    };
    let panics_warmly = line.contains("reboot=panic_warm") && !line.split_whitespace().any(warm);
    (line, if panics_warmly { Conventions::WarmIsPanic } else { Conventions::Linux })
}

/// The words for a Multiboot image: its name, then the user's words and no others.
fn multiboot_command_line(options: &BootSpec, image: &Path) -> String {
    let more = [&options.cmdline, &options.append];
    let words = std::iter::once(one_word(image)).chain(more.into_iter().flatten().cloned());
    words.collect::<Vec<_>>().join(" ")
}

/// The name of the file, without the spaces and the like that would make it several words.
fn one_word(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.replace(|c: char| c.is_whitespace() || c.is_control(), "_")
}

/// The words that say where the guest's console is.
fn console(spec: &RunSpec) -> &'static str {
    match spec.machine.console {
        // Most of what it says costs a boot more than it tells; a panic and an oops are never quiet.
        ConsoleSpec::Auto if spec.command.is_some() && !spec.shows_kernel() => match spec.measure.trace {
            None => "console=ttyS0 quiet oops=panic cryptomgr.notests",
            // Its first line tells when it starts, and so do the words of kite's own `/init`; all the rest is too much.
            Some(_) => "console=ttyS0 loglevel=6 kite.trace oops=panic cryptomgr.notests",
        },
        ConsoleSpec::Auto if spec.command.is_some() => "console=ttyS0 oops=panic cryptomgr.notests",
        // The kernel's own messages stay with the serial port: a panic prints there whatever has happened before.
        ConsoleSpec::Auto if spec.has_virtio_console() => "console=ttyS0 kite.console=hvc0",
        ConsoleSpec::Auto | ConsoleSpec::Serial => "console=ttyS0",
        // An early console gives way to the real one, so that no message is lost and none comes twice.
        ConsoleSpec::Virtio => "earlycon=uart8250,io,0x3f8 console=hvc0",
        ConsoleSpec::None => "console=null",
    }
}

/// What has the kernel's messages on the screen, too. The last console is where user space is.
fn screen(spec: &RunSpec) -> &'static str {
    let shows = spec.machine.screen().is_some() && spec.machine.console != ConsoleSpec::None;
    if shows { "console=tty0 " } else { "" }
}

/// Why this host would not get a kernel to user space, if it would not.
pub(super) fn refusal(image: &Image) -> Option<&'static str> {
    (is_pvm() && image.is_linux()).then_some(
        "this host's KVM is PVM, which cannot run a stock kernel: it emulates kernel code one instruction at a \
         time, and the boot crawls and dies; use a host with hardware virtualisation (`kite doctor` tells), or \
         --force if this kernel is made for PVM",
    )
}

/// Whether KVM runs without hardware virtualisation, by the PVM module.
fn is_pvm() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
}

fn read_initrd(path: &Path) -> anyhow::Result<Vec<Piece>> {
    let read = || -> anyhow::Result<Piece> {
        // Before opening: opening a pipe would wait for its writer.
        ensure!(fs::metadata(path)?.is_file(), "it is not a regular file");
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        ensure!(len > 0, "it is empty");
        Ok(Piece::File { file: Arc::new(file), offset: 0, len })
    };
    Ok(vec![read().with_context(|| format!("cannot use initrd {}", path.display()))?])
}

/// kite's own executable, by its name: what leads to it in /proc leads past this process's own mounts. A copy, if it has
/// that name no more.
fn own_program() -> anyhow::Result<File> {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let itself = identity(fs::metadata(ITSELF)?);
    let named = fs::read_link(ITSELF).and_then(File::open);
    if let Ok(named) = named
        && identity(named.metadata()?) == itself
    {
        return Ok(named);
    }
    let mut copy = File::from(memfd_create(c"kite", MFdFlags::MFD_CLOEXEC)?);
    io::copy(&mut File::open(ITSELF)?, &mut copy)?;
    Ok(copy)
}

/// Whether an executable names a dynamic loader, which no guest has (System V ABI, "Program Header": PT_INTERP).
fn needs_loader(program: &File) -> io::Result<bool> {
    const HEADER: usize = 64;
    const INTERPRETER: u32 = 3;
    let mut header = [0; HEADER];
    program.read_exact_at(&mut header, 0)?;
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let offset = u64::from_le_bytes(header[32..40].try_into().expect("eight bytes"));
    let (len, count) = (half(54), half(56));
    for index in 0..count {
        let mut kind = [0; 4];
        // What wraps is no offset of a file.
        program.read_exact_at(&mut kind, offset.wrapping_add(index * len))?;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Ok(true);
        }
    }
    Ok(false)
}

/// kite's own executable as `/init`, with the kernel's modules.
fn build_initrd(spec: &MachineSpec, boot: &Boot, devices: &Devices) -> anyhow::Result<Vec<Piece>> {
    let modules = modules::to_load(spec, &boot.image, boot.modules.as_deref(), devices)?;
    let files: Vec<_> = boot.command.iter().map(|command| (wire::FILE, command.as_slice())).collect();
    let init = own_program().context("cannot open kite's own executable")?;
    ensure!(
        !needs_loader(&init).context("cannot read kite's own executable")?,
        "this kite is linked dynamically, and so cannot be /init in a guest: build it in its source tree by cargo build, or \
         install it by cargo install"
    );
    Ok(initramfs::standard(Arc::new(init), &modules, &files).context("cannot build the initramfs")?.pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MeasureSpec;
    use crate::spec::machine::TransportSpec;

    #[test]
    fn pci_is_off_where_there_is_no_bus() {
        let line = |transport| {
            let machine = MachineSpec { transport, ..MachineSpec::default() };
            command_line(&RunSpec::new(machine, None, MeasureSpec::default(), false)).0
        };
        for transport in [TransportSpec::Auto, TransportSpec::Mmio] {
            assert!(line(transport).contains(" pci=off "), "{}", line(transport));
        }
        let line = line(TransportSpec::Pci);
        assert!(line.contains(" pci=noearly ") && !line.contains("pci=off"), "{line}");
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_a_static_one() {
        // The tests are linked as kite is.
        let own = File::open(ITSELF).unwrap();
        assert_eq!(needs_loader(&own).unwrap(), !cfg!(target_feature = "crt-static"));
        if let Ok(shell) = File::open("/bin/sh") {
            assert!(needs_loader(&shell).unwrap());
        }
        assert!(needs_loader(&File::open("/dev/null").unwrap()).is_err());
    }
}
