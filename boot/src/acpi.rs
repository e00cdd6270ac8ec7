//! The ACPI tables (ACPI 6.5 §5.2): what is on the board, and how to power it off.
//!
//! The board is hardware-reduced (§4.1): no SCI, no PM timer, no fixed events. Linux then asks for no legacy
//! interrupt controller and no PIT, and powers off and resets through the registers that the FADT names.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{GuestMemory, layout};

/// The tables could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tables would reach what real mode's vectors point at.
    #[error("the ACPI tables of {cpus} CPUs end at {end:#x}, past {END:#x}")]
    TooLong {
        /// How many CPUs they describe.
        cpus: u32,
        /// Where they would end.
        end: u64,
    },
    /// There is no RAM where they go.
    #[error("cannot write the ACPI tables to {:#x}", layout::RSDP)]
    Memory(#[source] GuestMemoryError),
}

const OEM: [u8; 6] = *b"KITE  ";
const OEM_TABLE: [u8; 8] = *b"KITE    ";
const OEM_REVISION: u32 = 1;

/// The RSDP is 36 bytes; the XSDT follows it on the next 8-byte boundary.
const XSDT_ADDRESS: u64 = layout::RSDP + 40;
/// The XSDT is a header of 36 bytes and three addresses at most; everything else follows it.
const TABLES: u64 = XSDT_ADDRESS + 64;

/// Where a PC's BIOS is entered to reset, f000:fff0.
const RESET_VECTOR: u64 = layout::ACPI_END - 16;
/// The tables end before this.
const END: u64 = layout::INTERRUPT_STUBS;
/// The reset register.
const RESET_PORT: u16 = layout::POWER_PORT + 2;

/// FADT `IAPC_BOOT_ARCH` (table 5.10): no VGA to probe. The bits that stay clear say that there is no i8042
/// to look for, that MSIs work, and that there is a CMOS RTC.
const NO_VGA: u16 = 1 << 2;
/// The sleep type of S5, soft off: the guest writes it to the sleep control register, shifted left by two,
/// with the enable bit 5 (§4.8.3.7).
const S5_SLEEP_TYPE: u8 = 5;

/// Local APIC ids from this one on do not fit in a local APIC structure (§5.2.12.12).
const FIRST_X2APIC_ID: u32 = 255;
/// The length of the MADT in front of its interrupt controller structures.
const MADT_HEADER: usize = 44;

/// How a guest finds the virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtio {
    /// There are so many register windows, at most [`layout::VIRTIO_MAX`].
    Mmio(u32),
    /// There is a PCI bus.
    Pci,
}

/// Writes the tables of a board with `cpus` CPUs, whose APIC ids are their indices, and `virtio` devices, and returns the
/// RSDP's address. `pm_timer` is the port of the PM timer, if there is one.
///
/// # Errors
/// [`Error::TooLong`] from about 8,000 CPUs on; [`Error::Memory`] if there is no RAM from [`layout::RSDP`].
pub fn write(memory: &GuestMemory, cpus: u32, virtio: Virtio, pm_timer: Option<u16>) -> Result<u64, Error> {
    let mut tables = Tables(vec![0; (TABLES - layout::RSDP) as usize]);
    let dsdt = tables.push(dsdt(virtio).as_slice());
    let fadt = tables.push(&bytes_of(&fadt(dsdt, pm_timer)));
    let mcfg = (virtio == Virtio::Pci).then(|| tables.push(&bytes_of(&mcfg())));
    let end = tables.next() + madt_len(cpus);
    if end > END {
        return Err(Error::TooLong { cpus, end });
    }
    let madt = tables.push(madt(cpus).as_slice());

    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(mcfg) = mcfg {
        xsdt.add_entry(mcfg);
    }
    let rsdt = pm_timer.map_or(0, |_| tables.push(rsdt(&[fadt, madt]).as_slice()));
    tables.put(layout::RSDP, &rsdp(rsdt));
    tables.put(XSDT_ADDRESS, &bytes_of(&xsdt));
    memory.write_slice(&tables.0, GuestAddress(layout::RSDP)).map_err(Error::Memory)?;
    memory.write_slice(&reset_code(), GuestAddress(RESET_VECTOR)).map_err(Error::Memory)?;
    Ok(layout::RSDP)
}

/// What will be in memory from [`layout::RSDP`] on.
struct Tables(Vec<u8>);

impl Tables {
    /// Where the next table goes.
    fn next(&self) -> u64 {
        (layout::RSDP + self.0.len() as u64).next_multiple_of(8)
    }

    /// Appends `table` and says where it is.
    fn push(&mut self, table: &[u8]) -> u64 {
        let address = self.next();
        self.0.resize((address - layout::RSDP) as usize, 0);
        self.0.extend_from_slice(table);
        address
    }

    /// Puts `table` into the room kept for it at `address`.
    fn put(&mut self, address: u64, table: &[u8]) {
        let at = (address - layout::RSDP) as usize;
        self.0[at..at + table.len()].copy_from_slice(table);
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FADT::len());
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut sdt = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(body);
    sdt
}

/// The root pointer. Some unit tests look no further than its first, 32-bit table of tables; 0 if there is none.
fn rsdp(rsdt: u64) -> Vec<u8> {
    let mut rsdp = bytes_of(&Rsdp::new(OEM, XSDT_ADDRESS));
    // The tables lie below 1 MiB.
    rsdp[16..20].copy_from_slice(&(rsdt as u32).to_le_bytes());
    for (checksum, covered) in [(8, 20), (32, 36)] {
        rsdp[checksum] = 0;
        rsdp[checksum] = rsdp[..covered].iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    }
    rsdp
}

/// The root table with 32-bit addresses (§5.2.7).
fn rsdt(tables: &[u64]) -> Sdt {
    let addresses: Vec<u8> = tables.iter().flat_map(|table| (*table as u32).to_le_bytes()).collect();
    sdt(*b"RSDT", 1, &addresses)
}

/// The definition block: the devices that cannot be discovered, and the sleep type that powers off.
fn dsdt(virtio: Virtio) -> Sdt {
    let mut body = Vec::with_capacity(1024);
    serial(&mut body);
    real_time_clock(&mut body);
    pvpanic(&mut body);
    match virtio {
        Virtio::Mmio(count) => (0..count).for_each(|index| virtio_mmio(&mut body, index)),
        Virtio::Pci => pci::describe(&mut body),
    }
    let s5 = aml::Package::new(vec![&S5_SLEEP_TYPE, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    aml::Name::new("_S5_".into(), &s5).to_aml_bytes(&mut body);
    sdt(*b"DSDT", 2, &body)
}

fn serial(body: &mut Vec<u8>) {
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
                    // Consumed, edge-triggered, active high, exclusive.
                    &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// Without an interrupt: Linux then offers no alarms and asks for no line.
fn real_time_clock(body: &mut Vec<u8>) {
    aml::Device::new(
        "_SB_.RTC_".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0B00")),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(layout::CMOS_PORT, layout::CMOS_PORT, 1, 2)]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// The device by which a kernel reports its panic (QEMU `docs/specs/pvpanic.rst`).
fn pvpanic(body: &mut Vec<u8>) {
    aml::Device::new(
        "_SB_.PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(
                    layout::PVPANIC_PORT,
                    layout::PVPANIC_PORT,
                    1,
                    1,
                )]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// A virtio device over MMIO: nothing else tells a guest where it is.
fn virtio_mmio(body: &mut Vec<u8>, index: u32) {
    let address = layout::VIRTIO + layout::VIRTIO_WINDOW * u64::from(index);
    aml::Device::new(
        format!("_SB_.V{index:03}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, address as u32, layout::VIRTIO_WINDOW as u32),
                    // Consumed, edge-triggered, active high, exclusive.
                    &aml::Interrupt::new(true, true, false, false, layout::VIRTIO_GSI + index),
                ]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// The fixed description: hardware-reduced, so that all it holds is how to power off and reset. A PM timer is there for
/// those who read the table without asking what kind of board it is, as unit tests do; others are to ignore it (§5.2.9).
fn fadt(dsdt: u64, pm_timer: Option<u16>) -> FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.sleep_control_reg = port(layout::POWER_PORT);
    fadt.sleep_status_reg = port(layout::POWER_PORT + 1);
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    if let Some(port) = pm_timer {
        fadt = fadt.flag(Flags::TmrValExt);
        fadt.pm_tmr_blk = u32::from(port).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, port.into());
    }
    fadt.finalize()
}

/// What a jump to the BIOS's reset vector finds. Without `reboot=`, Linux asks EFI to reset a
/// hardware-reduced board and, where there is no EFI, jumps there; it does not come to the reset register.
fn reset_code() -> [u8; 7] {
    let [low, high] = RESET_PORT.to_le_bytes();
    // mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt
    [0xba, low, high, 0xb0, layout::RESET_VALUE, 0xee, 0xf4]
}

/// Where the configuration space of PCI bus 0 is (PCI Firmware 3.3 §4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_CONFIG, 0, 0, 0);
    mcfg
}

/// The length in bytes of [`madt`]'s table.
fn madt_len(cpus: u32) -> u64 {
    let apics = u64::from(cpus.min(FIRST_X2APIC_ID));
    let x2apics = u64::from(cpus.saturating_sub(FIRST_X2APIC_ID));
    MADT_HEADER as u64 + 12 + 8 * apics + 16 * x2apics
}

/// The interrupt controllers (§5.2.12). The flag PCAT_COMPAT stays clear: nothing here needs the two 8259s.
fn madt(cpus: u32) -> Sdt {
    let mut body = Vec::with_capacity(madt_len(cpus) as usize);
    body.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    // I/O APIC: type, length, id, reserved; its address; its first GSI.
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&layout::IO_APIC.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    for cpu in 0..cpus {
        match u8::try_from(cpu) {
            // Processor local APIC: type, length, processor UID, APIC id, flags: enabled.
            Ok(id) if cpu < FIRST_X2APIC_ID => body.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]),
            // Processor local x2APIC: type, length, reserved; x2APIC id; flags: enabled; processor UID.
            _ => {
                body.extend_from_slice(&[9, 16, 0, 0]);
                body.extend_from_slice(&cpu.to_le_bytes());
                body.extend_from_slice(&1u32.to_le_bytes());
                body.extend_from_slice(&cpu.to_le_bytes());
            }
        }
    }
    sdt(*b"APIC", 6, &body)
}

mod pci;
#[cfg(test)]
mod tests;
