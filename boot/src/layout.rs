//! The address map: where everything sits that the guest finds at reset. All addresses are guest-physical.

/// RAM below the 3-4 GiB hole ends here at the latest; what does not fit goes on at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM above the hole starts here.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// The boot vCPU's global descriptor table.
pub const GDT: u64 = 0x500;
/// The BIOS data area's reset word: a 16-bit value that Linux sets before every reset it asks for.
pub const RESET_WORD: u64 = 0x472;
/// PVH `hvm_start_info` (Xen `docs/misc/pvh.pandoc`) and, behind it, the memory map and module list.
pub const PVH_INFO: u64 = 0x6000;
/// Linux `boot_params`, the "zero page" (Linux `Documentation/arch/x86/zero-page.rst`).
pub const ZERO_PAGE: u64 = 0x7000;
/// The boot vCPU's page tables: one PML4, one PDPT, one page directory.
pub const PAGE_TABLES: u64 = 0x9000;
/// They map this many bytes from address 0 to themselves.
pub const IDENTITY_MAP: u64 = 1 << 30;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line in bytes without its NUL: Linux's own `COMMAND_LINE_SIZE` is 2048 with it.
pub const CMDLINE_MAX: usize = 2047;
/// Multiboot information and all that it points at, a page; the command line goes here, too, as such images use the
/// memory below.
pub const MULTIBOOT_INFO: u64 = 0x9_e000;
/// What a Multiboot image loads below 1 MiB lies between this and [`MULTIBOOT_INFO`].
pub const LOW_SEGMENTS: u64 = 0x1000;

/// Conventional RAM ends here; up to 1 MiB are tables that the e820 map calls reserved.
pub const LOW_TABLES: u64 = 0x9_fc00;
/// The MP floating pointer (MP 1.4 §4.1), in the last KiB of conventional memory; its table is at [`RSDP`].
pub const MP_TABLE: u64 = LOW_TABLES;
/// The ACPI root pointer (ACPI 6.5 §5.2.5.1: it is searched for from here up); the tables follow it.
pub const RSDP: u64 = 0xe_0000;
/// The tables end before [`INTERRUPT_STUBS`]; the last 16 bytes before this are a PC's reset vector.
pub const ACPI_END: u64 = 0x10_0000;
/// Real mode's interrupt vectors, as a PC's firmware leaves them.
pub const INTERRUPT_VECTORS: u64 = 0;
/// What real mode's vectors point at.
pub const INTERRUPT_STUBS: u64 = ACPI_END - 0x40;
/// The vectors of the first interrupt controller's lines, and of the second's, as a PC's firmware sets them.
pub const PIC_VECTORS: [u8; 2] = [0x08, 0x70];
/// Where kernels are loaded that do not say where: 1 MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The register window of the first virtio device; the next one's follows it, [`VIRTIO_WINDOW`] bytes further.
pub const VIRTIO: u64 = 0xd000_0000;
/// The length of a virtio device's register window in bytes.
pub const VIRTIO_WINDOW: u64 = 0x1000;
/// The first virtio device's line; every device has one of its own.
pub const VIRTIO_GSI: u32 = 5;
/// How many virtio devices there can be: the I/O APIC has 24 lines.
pub const VIRTIO_MAX: u32 = 24 - VIRTIO_GSI;

/// The configuration space of PCI bus 0, a MiB; there is no other bus.
pub const PCI_CONFIG: u64 = 0xd800_0000;
/// The length of [`PCI_CONFIG`] in bytes.
pub const PCI_CONFIG_LEN: u64 = 1 << 20;
/// Where PCI functions have their memory; the guest may move it about in here.
pub const PCI_MEMORY: u64 = 0xd900_0000;
/// The length of [`PCI_MEMORY`] in bytes.
pub const PCI_MEMORY_LEN: u64 = 16 << 20;
/// How many virtio devices there can be on the PCI bus: it has 32, of which the first is the host bridge and the last is
/// absent.
pub const PCI_MAX: u32 = 30;
/// The first interrupt that is a message's and no line's.
pub const FIRST_MESSAGE_GSI: u32 = 24;

/// The first pixel of the frame buffer; there is room for 64 MiB.
pub const FRAME_BUFFER: u64 = 0xe000_0000;

/// The I/O APIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Every local APIC's registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM on Intel wants for real mode's identity map; the three pages after it are its TSS.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// COM1, a 16550A: eight ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's line.
pub const SERIAL_GSI: u32 = 4;
/// The real-time clock's index and data port.
pub const CMOS_PORT: u16 = 0x70;
/// The keyboard controller's ports: data here, command and status four further.
pub const I8042_PORT: u16 = 0x60;
/// The interval timer's ports: three channels and the control word.
pub const PIT_PORT: u16 = 0x40;
/// System control port B, with the gate of the timer's channel 2.
pub const PIT_GATE_PORT: u16 = 0x61;
/// ACPI sleep control; the next port is sleep status, the one after it the reset register.
pub const POWER_PORT: u16 = 0x600;
/// The pvpanic device's port, where QEMU has it.
pub const PVPANIC_PORT: u16 = 0x505;
/// What to write to the reset register, two ports after [`POWER_PORT`].
pub const RESET_VALUE: u8 = 1;

/// What `--test-devices` adds. isa-debug-exit: four ports, of which a write to the first ends the guest.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// pc-testdev's first latch: four ports that take any width.
pub const LATCH_PORT: u16 = 0xe0;
/// Where the address of a page is written that KVM is to forget.
pub const FLUSH_PORT: u16 = 0xe4;
/// pc-testdev's second latch: four ports, a byte each.
pub const BYTE_LATCH_PORT: u16 = 0xe8;
/// The first of 24 ports that each drive the line of their number.
pub const LINES_PORT: u16 = 0x2000;
/// Memory of 64 KiB that is the VMM's and not the guest's.
pub const SCRATCH: u64 = 0xff00_0000;
/// fw_cfg's selector; its data port is the next.
pub const FW_CFG_PORT: u16 = 0x510;
/// The ACPI PM timer, four ports.
pub const PM_TIMER_PORT: u16 = 0x608;
/// PCI's CONFIG_ADDRESS, four ports; CONFIG_DATA is the four after them.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Where BAR 0 of pci-testdev is.
pub const PCI_TEST_MEMORY: u64 = 0xfe00_0000;
/// Where BAR 1 of pci-testdev is.
pub const PCI_TEST_PORT: u16 = 0xc000;
