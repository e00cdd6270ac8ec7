//! A machine: what is built, what boots in it, and what of the host it may take.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::device::{DeviceSpec, PortSpec, ScreenSpec, ShareSpec};
use super::disk::DiskSpec;
use super::id::MachineId;
use super::limits::{CgroupName, Limits};
use super::net::NetSpec;
use super::number::{MIB, check_memory};
use super::sandbox::SandboxSpec;
use super::text;
use super::vnc::VncSpec;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineSpec {
    /// The name by which commands find it while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<MachineId>,
    /// How many vCPUs.
    pub cpus: u32,
    /// RAM in bytes, whole pages.
    #[serde(default = "no_memory")]
    pub memory: u64,
    /// What boots.
    pub boot: BootSpec,
    /// Whether the guest finds ACPI tables, or else an MP table.
    pub acpi: bool,
    /// What is between the guest and its virtio devices.
    pub transport: TransportSpec,
    /// Where the guest's console is.
    pub console: ConsoleSpec,
    /// The devices beside those that each machine has. A guest without ACPI finds none of them.
    pub devices: Vec<DeviceSpec>,
    /// How viewers get to the screen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vnc: Option<VncSpec>,
    /// Whether there is what KVM's unit tests expect.
    pub test_devices: bool,
    /// What a guest's reboot does.
    pub on_reboot: OnReboot,
    /// How kite locks itself in.
    pub sandbox: SandboxSpec,
    /// The name of its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupName>,
    /// What it may take of the host.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// Stands for the default, which depends on whether there is a command.
fn no_memory() -> u64 {
    0
}

/// What a document means that says nothing of the machine.
pub(super) fn unset() -> MachineSpec {
    MachineSpec { memory: no_memory(), ..MachineSpec::default() }
}

/// The environment's variable that names the kernel where no option does.
pub const KERNEL_VARIABLE: &str = "KITE_KERNEL";

/// The kernel that the environment names, if it names one.
pub fn default_kernel() -> Option<PathBuf> {
    std::env::var_os(KERNEL_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// RAM in bytes where none is given.
pub fn default_memory(has_command: bool) -> u64 {
    if has_command { 1024 * MIB } else { 512 * MIB }
}

/// What boots in a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootSpec {
    /// The kernel: an image, a folder that one was built in, or the version of an installed one; if none is given, one that
    /// was built in the current folder, or else the newest that is installed.
    #[serde(skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub kernel: Option<PathBuf>,
    /// The initrd; one that kite makes of itself and the kernel's modules if none is given.
    #[serde(skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub initrd: Option<PathBuf>,
    /// The folder of the kernel's modules; one that belongs to the kernel if none is given.
    #[serde(skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub modules: Option<PathBuf>,
    /// Modules to load beside those that the devices need.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_modules: Vec<String>,
    /// What is added to the kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// The kernel's command line, instead of kite's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Go on where kite expects the guest to fail.
    pub force: bool,
}

/// What is between the guest and its virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TransportSpec {
    /// What is known to be better: mmio
    #[default]
    Auto,
    /// Registers in memory space, and an interrupt line for each device
    Mmio,
    /// A PCI bus, and interrupts by message (MSI-X)
    Pci,
}

/// Where the guest's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleSpec {
    /// With kite's own initrd, COM1 for the kernel and hvc0 for its user space; with another, COM1
    #[default]
    #[value(skip)]
    Auto,
    /// COM1, which every kernel has from its first line on
    Serial,
    /// hvc0, much faster; until its driver is up the kernel prints to COM1
    Virtio,
    /// The guest has none
    None,
}

/// What a guest's reboot does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum OnReboot {
    /// kite ends with exit code 0
    #[default]
    Exit,
    /// The guest boots again, in a machine built anew
    Restart,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            id: None,
            cpus: 1,
            memory: default_memory(false),
            boot: BootSpec::default(),
            acpi: true,
            transport: TransportSpec::default(),
            console: ConsoleSpec::default(),
            devices: vec![DeviceSpec::Balloon {}, DeviceSpec::Rng {}],
            vnc: None,
            test_devices: false,
            on_reboot: OnReboot::default(),
            sandbox: SandboxSpec::default(),
            cgroup: None,
            limits: Limits::default(),
        }
    }
}

impl MachineSpec {
    /// Its disks.
    pub fn disks(&self) -> impl Iterator<Item = &DiskSpec> {
        self.devices.iter().filter_map(|it| if let DeviceSpec::Disk(disk) = it { Some(disk) } else { None })
    }

    /// Its networks.
    pub fn nets(&self) -> impl Iterator<Item = &NetSpec> {
        self.devices.iter().filter_map(|it| if let DeviceSpec::Net(net) = it { Some(net) } else { None })
    }

    /// The folders that it shows the guest.
    pub fn shares(&self) -> impl Iterator<Item = &ShareSpec> {
        self.devices
            .iter()
            .filter_map(|it| if let DeviceSpec::Share(share) = it { Some(share) } else { None })
    }

    /// Its named ports.
    pub fn ports(&self) -> impl Iterator<Item = &PortSpec> {
        self.devices.iter().filter_map(|it| if let DeviceSpec::Port(port) = it { Some(port) } else { None })
    }

    /// Its screen, if it has one.
    pub fn screen(&self) -> Option<ScreenSpec> {
        self.devices
            .iter()
            .find_map(|it| if let DeviceSpec::Screen(screen) = it { Some(*screen) } else { None })
    }

    /// Whether commands find it while it runs: one with a screen is given a name if it has none.
    pub fn is_found(&self) -> bool {
        self.id.is_some() || self.screen().is_some()
    }

    /// Whether it has a PCI bus, with its virtio devices.
    pub fn has_pci(&self) -> bool {
        self.acpi && self.transport == TransportSpec::Pci
    }

    /// Whether it has a balloon that the guest finds.
    pub fn has_balloon(&self) -> bool {
        self.acpi && self.devices.contains(&DeviceSpec::Balloon {})
    }

    /// Whether it has an entropy device that the guest finds.
    pub fn has_rng(&self) -> bool {
        self.acpi && self.devices.contains(&DeviceSpec::Rng {})
    }

    /// Whether it can be built.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.cpus == 0 {
            return Err("--cpus: it is a whole number, at least 1".to_owned());
        }
        check_memory(self.memory).map_err(|why| format!("--memory: {why}"))?;
        self.boot.check()?;
        self.devices.iter().try_for_each(DeviceSpec::check)?;
        for (device, name) in [(DeviceSpec::Balloon {}, "balloon"), (DeviceSpec::Rng {}, "entropy device")] {
            if self.devices.iter().filter(|it| **it == device).count() > 1 {
                return Err(format!("there is more than one {name}"));
            }
        }
        if self.devices.iter().filter(|it| matches!(it, DeviceSpec::Screen(_))).count() > 1 {
            return Err("there is more than one screen".to_owned());
        }
        if let Some(vnc) = &self.vnc {
            vnc.check().map_err(|why| format!("--vnc: {why}"))?;
            if self.screen().is_none() {
                return Err("--vnc shows the screen: add --screen".to_owned());
            }
        }
        let named = self.disks().count() + self.nets().count() + self.ports().count();
        if !self.acpi && named > 0 {
            return Err("--disk, --net and --port need ACPI: leave out --no-acpi".to_owned());
        }
        if !self.acpi && self.transport == TransportSpec::Pci {
            return Err("--transport pci needs ACPI: leave out --no-acpi".to_owned());
        }
        if self.test_devices && self.transport == TransportSpec::Pci {
            return Err("--test-devices has another PCI bus: leave out --transport pci".to_owned());
        }
        if !self.acpi && self.console == ConsoleSpec::Virtio {
            return Err("--console virtio needs ACPI: leave out --no-acpi".to_owned());
        }
        self.limits.check().map_err(|why| format!("--limit: {why}"))
    }

    /// Has relative paths begin at `folder`.
    pub(super) fn rebase(&mut self, folder: &Path) {
        self.boot.rebase(folder);
        self.devices.iter_mut().for_each(|device| device.rebase(folder));
        self.vnc.iter_mut().for_each(|vnc| vnc.rebase(folder));
        self.limits.rebase(folder);
    }
}

impl BootSpec {
    fn check(&self) -> Result<(), String> {
        if self.initrd.is_some() && (self.modules.is_some() || !self.extra_modules.is_empty()) {
            return Err("--modules and --module are for kite's own initrd: leave out --initrd".to_owned());
        }
        if self.extra_modules.iter().any(|name| name.is_empty() || name.contains('\0')) {
            return Err("--module: a module has a name".to_owned());
        }
        Ok(())
    }

    fn rebase(&mut self, folder: &Path) {
        for path in [&mut self.initrd, &mut self.modules].into_iter().flatten() {
            *path = folder.join(&*path);
        }
        // It may be a version, too.
        let is_file = |path: &&mut PathBuf| path.components().count() > 1 || folder.join(&**path).exists();
        if let Some(path) = self.kernel.as_mut().filter(is_file) {
            *path = folder.join(&*path);
        }
    }
}
