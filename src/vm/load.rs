//! Loading: puts a kernel, its initrd and what it reads at start into guest memory, before or while a machine is
//! built around that memory.

use anyhow::{Context, ensure};
use boot::kernel::Image;
use boot::params::Params;
use boot::{Piece, acpi, firmware, layout, mptable};
use vm_memory::{Bytes, GuestAddress};

use crate::host::phases::Phases;
use crate::spec::MachineSpec;
use crate::spec::device::ScreenSpec;
use crate::vm::memory::GuestRam;

/// What [`layout::RESET_WORD`] holds unless the guest has written it. Linux writes 0 or 0x1234 before a reset.
const UNTOUCHED: u16 = 0xffff;

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The kernel.
    pub image: &'a Image,
    /// The initrd's parts, in order; it is loaded at the start of a page.
    pub initrd: &'a [Piece],
    /// The command line.
    pub cmdline: &'a str,
    /// What the initrd is called; only a Multiboot image is given that.
    pub module: &'a str,
}

impl Guest<'_> {
    /// Fills `ram`, which is new, for a machine of `spec` with so many `virtio` devices; returns where the boot parameters are. Notes in `phases` how
    /// long each part takes.
    ///
    /// # Errors
    /// The guest does not fit in memory, or a file cannot be read.
    pub fn load(
        &self,
        spec: &MachineSpec,
        virtio: u32,
        ram: &GuestRam,
        phases: &Phases,
    ) -> anyhow::Result<u64> {
        phases.phase("load the kernel", || self.place_kernel(spec, ram))?;
        let initrd = phases.phase("load the initrd", || self.place_initrd(spec, ram))?;
        let memory = ram.memory();
        let rsdp = phases.phase(if spec.acpi { "ACPI" } else { "MP table" }, || tables(spec, virtio, ram))?;
        memory.write_obj(UNTOUCHED, GuestAddress(layout::RESET_WORD))?;
        if spec.test_devices {
            firmware::write(memory).context("cannot write real mode's interrupt vectors")?;
        }
        let frame_buffer = spec.screen().map(ScreenSpec::frame_buffer);
        let (cmdline, module) = (self.cmdline, self.module);
        let params = Params { cmdline, initrd, module, rsdp, ram: spec.memory, frame_buffer };
        params.write(memory, self.image).context("cannot write the boot parameters")
    }

    fn place_kernel(&self, spec: &MachineSpec, ram: &GuestRam) -> anyhow::Result<()> {
        for segment in &self.image.segments {
            // Neither wraps: segments end below 4 GiB.
            ensure!(
                segment.addr + segment.mem_len <= low_ram_end(spec),
                "the kernel needs memory up to {} MiB, and the guest has {} MiB",
                (segment.addr + segment.mem_len).div_ceil(1 << 20),
                spec.memory >> 20
            );
            ram.place(segment.addr, &segment.piece).context("cannot load the kernel")?;
        }
        Ok(())
    }

    /// Puts the initrd as high as the kernel can find it; returns its address and length.
    fn place_initrd(&self, spec: &MachineSpec, ram: &GuestRam) -> anyhow::Result<Option<(u64, u64)>> {
        let len: u64 = self.initrd.iter().map(Piece::len).sum();
        if len == 0 {
            return Ok(None);
        }
        let start = self.image.initrd_start(low_ram_end(spec), len).with_context(|| {
            format!("the initrd's {} MiB do not fit in memory beside the kernel", len.div_ceil(1 << 20))
        })?;
        // Mappings first: beside them the host has no room for a huge page, which it would clear for a few bytes.
        for mapped in [true, false] {
            let mut at = start;
            for piece in self.initrd {
                if matches!(piece, Piece::File { .. }) == mapped {
                    ram.place(at, piece).context("cannot load the initrd")?;
                }
                at += piece.len();
            }
        }
        Ok(Some((start, len)))
    }
}

/// Writes the tables that describe the board; returns where those of ACPI are.
fn tables(spec: &MachineSpec, virtio: u32, ram: &GuestRam) -> anyhow::Result<Option<u64>> {
    if spec.acpi {
        let pm_timer = spec.test_devices.then_some(layout::PM_TIMER_PORT);
        let virtio = if spec.has_pci() { acpi::Virtio::Pci } else { acpi::Virtio::Mmio(virtio) };
        return Ok(Some(acpi::write(ram.memory(), spec.cpus, virtio, pm_timer)?));
    }
    mptable::write(ram.memory(), spec.cpus)?;
    Ok(None)
}

fn low_ram_end(spec: &MachineSpec) -> u64 {
    spec.memory.min(layout::LOW_RAM_END)
}
