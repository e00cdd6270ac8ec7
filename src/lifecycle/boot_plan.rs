//! What `kite run` would boot, for those who have it booted by others, too.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use boot::Piece;
use boot::initramfs::Archive;

use super::check_memory;
use super::devices::{Devices, Extra};
use super::kernel::{self, Boot};
use crate::spec::RunSpec;

/// A kernel, its command line and its initrd.
pub(crate) struct BootPlan {
    path: PathBuf,
    boot: Boot,
    initrd: Archive,
}

impl BootPlan {
    /// Looks at all that `spec` names.
    ///
    /// # Errors
    /// `kite run` would not start with it.
    pub fn new(spec: &RunSpec) -> anyhow::Result<Self> {
        let machine = &spec.machine;
        check_memory(machine.memory)?;
        let path = kernel::kernel_path(machine.boot.kernel.as_deref())?;
        let boot = Boot::prepare(spec)?;
        let devices = Devices::open(machine, Extra::default())?;
        let pieces = kernel::initrd(machine, &boot, &devices)?;
        let len = pieces.iter().map(Piece::len).sum();
        Ok(Self { path, boot, initrd: Archive { pieces, len } })
    }

    /// The kernel's file.
    pub fn kernel(&self) -> &Path {
        &self.path
    }

    /// What the kernel calls itself.
    pub fn version(&self) -> Option<String> {
        self.boot.image.version()
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> &str {
        &self.boot.cmdline
    }

    /// Whether it comes to kite's own `/init`.
    pub fn is_linux(&self) -> bool {
        self.boot.image.is_linux()
    }

    /// Why this host would not get it to user space, if it would not.
    pub fn refusal(&self) -> Option<&'static str> {
        kernel::refusal(&self.boot.image)
    }

    /// Whether there is an initrd.
    pub fn has_initrd(&self) -> bool {
        self.initrd.len > 0
    }

    /// Writes the initrd.
    ///
    /// # Errors
    /// One of its files cannot be read, or `to` not be written.
    pub fn write_initrd(&self, to: &mut impl Write) -> io::Result<()> {
        self.initrd.write_to(to)
    }
}
