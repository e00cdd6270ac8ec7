//! The payloads: what each does, where it ends, and how it is measured.

use boot::testing::Code;
use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR};

use super::code;
use super::entry::{Immediate, Kick};
use super::interrupts::{Irqfd, Pace, RoundTrip};
use super::ipi::Ipi;
use super::memory::{First, FirstWrite, GetLog};
use super::protocol::Measure;
use super::rig::{Ends, Setup};
use super::sample::Path;
use super::single::{self, Prepare, Single};
use super::slot::Backing;

/// One row of the table, or several.
pub struct Payload {
    /// Its name, by which it is asked for.
    pub id: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// What measures it.
    pub make: fn() -> Box<dyn Measure>,
    /// What other machines can run of it.
    pub image: Option<&'static Code>,
    /// How often KVM's counter `exits` goes up for each operation; nothing where that depends on the hardware.
    pub exits: Option<f64>,
    /// Whether the guest's own clock readings are part of the times.
    pub by_guest: bool,
    /// Whether it asks KVM itself for something.
    pub hypercall: bool,
}

const PIO: Ends = Ends::User(KVM_EXIT_IO);
const MMIO: Ends = Ends::User(KVM_EXIT_MMIO);

fn plain(blob: &'static Code, ends: Ends, prepare: Prepare) -> Single {
    let paths: &[Path] = match ends {
        Ends::User(_) => &[Path::Raw, Path::Vmm],
        Ends::Guest | Ends::Kernel => &[Path::Raw],
    };
    Single { blob, setup: Setup::default(), ends, prepare, paths, batch: true, each: [None; 2] }
}

/// KVM would replace the other vendor's instruction in the guest's memory, and that takes time.
fn hypercall() -> Box<dyn Measure> {
    let blob = if has_svm() { &code::HYPERCALL_AMD } else { &code::HYPERCALL_INTEL };
    Box::new(plain(blob, Ends::Kernel, single::nothing))
}

fn has_svm() -> bool {
    std::path::Path::new("/sys/module/kvm_amd").exists()
        && !std::path::Path::new("/sys/module/kvm_intel").exists()
}

fn interrupted(blob: &'static Code, x2apic: bool, prepare: Prepare) -> Box<dyn Measure> {
    let setup = Setup { x2apic, interrupts: true, second: None };
    Box::new(Single { setup, batch: false, ..plain(blob, Ends::Kernel, prepare) })
}

fn itself(blob: &'static Code, x2apic: bool) -> Box<dyn Measure> {
    interrupted(blob, x2apic, single::nothing)
}

fn timer(prepare: Prepare) -> Box<dyn Measure> {
    interrupted(&code::TIMER, false, prepare)
}

fn irqfd(halted: bool, msi: bool, pace: Pace) -> Box<dyn Measure> {
    Box::new(Irqfd { halted, msi, pace })
}

fn ipi(halted: bool, x2apic: bool) -> Box<dyn Measure> {
    Box::new(Ipi { halted, x2apic })
}

fn first(backing: Backing) -> Box<dyn Measure> {
    Box::new(First(backing))
}

/// Measured in a way of its own.
macro_rules! special {
    ($id:literal, $about:literal, $make:expr, by_guest) => {
        Payload { by_guest: true, ..special!($id, $about, $make) }
    };
    ($id:literal, $about:literal, $make:expr) => {
        Payload {
            id: $id,
            about: $about,
            make: $make,
            image: None,
            exits: None,
            by_guest: false,
            hypercall: false,
        }
    };
}

macro_rules! guest {
    ($id:literal, $about:literal, $blob:ident, $ends:expr) => {
        guest!($id, $about, $blob, $ends, single::nothing)
    };
    ($id:literal, $about:literal, $blob:ident, $ends:expr, $prepare:expr) => {
        Payload {
            id: $id,
            about: $about,
            make: || Box::new(plain(&code::$blob, $ends, $prepare)),
            image: Some(&code::$blob),
            exits: if matches!($ends, Ends::Guest) { Some(0.0) } else { Some(1.0) },
            by_guest: true,
            hypercall: false,
        }
    };
}

/// All of them, in the order of the table.
pub const PAYLOADS: &[Payload] = &[
    guest!("null", "nothing: two readings of the clock", NULL, Ends::Guest),
    special!("kvmrun.imm", "KVM_RUN that does not enter the guest", || Box::new(Immediate)),
    guest!("cpuid", "CPUID", CPUID, Ends::Kernel),
    Payload {
        hypercall: true,
        ..special!("hypercall", "VMCALL or VMMCALL, of a number that KVM does not know", hypercall, by_guest)
    },
    guest!("rdmsr.tsc_adjust", "RDMSR that KVM answers", RDMSR, Ends::Kernel),
    guest!("wrmsr.tsc_adjust", "WRMSR that KVM answers", WRMSR, Ends::Kernel),
    guest!("pio.kernel", "IN from KVM's interrupt controller", PIO_KERNEL, Ends::Kernel),
    guest!("pio.in.1", "IN of 1 byte", PIO_IN_1, PIO),
    guest!("pio.in.2", "IN of 2 bytes", PIO_IN_2, PIO),
    guest!("pio.in.4", "IN of 4 bytes", PIO_IN_4, PIO),
    guest!("pio.out.1", "OUT of 1 byte", PIO_OUT_1, PIO),
    guest!("pio.out.2", "OUT of 2 bytes", PIO_OUT_2, PIO),
    guest!("pio.out.4", "OUT of 4 bytes", PIO_OUT_4, PIO),
    guest!("pio.nobody", "IN of 1 byte where no device is", PIO_NOBODY, PIO),
    guest!("pio.rep16", "REP OUTSB of 16 bytes", PIO_REP16, PIO),
    guest!("mmio.r.1", "read of 1 byte of a device's memory", MMIO_READ_1, MMIO),
    guest!("mmio.r.4", "read of 4 bytes of a device's memory", MMIO_READ_4, MMIO),
    guest!("mmio.r.8", "read of 8 bytes of a device's memory", MMIO_READ_8, MMIO),
    guest!("mmio.w.1", "write of 1 byte to a device's memory", MMIO_WRITE_1, MMIO),
    guest!("mmio.w.4", "write of 4 bytes to a device's memory", MMIO_WRITE_4, MMIO),
    guest!("mmio.w.8", "write of 8 bytes to a device's memory", MMIO_WRITE_8, MMIO),
    special!(
        "msr.user",
        "RDMSR that user space answers",
        || {
            let ends = Ends::User(KVM_EXIT_X86_RDMSR);
            Box::new(Single {
                paths: &[Path::Raw],
                ..plain(&code::RDMSR_NOBODY, ends, single::msrs_to_user_space)
            })
        },
        by_guest
    ),
    guest!("ioev.pio", "OUT to an eventfd's port", NOTIFY_PIO, Ends::Kernel, single::notified_at_port),
    guest!(
        "ioev.mmio0",
        "write to an eventfd's address, of any length",
        NOTIFY_MMIO,
        Ends::Kernel,
        single::notified_by_any
    ),
    guest!(
        "ioev.mmio.dm",
        "write of the value that an eventfd is for",
        NOTIFY_MMIO,
        Ends::Kernel,
        single::notified_by_match
    ),
    special!(
        "ioev.rt.spin",
        "doorbell, thread that looks for it, interrupt",
        || Box::new(RoundTrip { sleeps: false }),
        by_guest
    ),
    special!(
        "ioev.rt.epoll",
        "doorbell, thread that sleeps, interrupt",
        || Box::new(RoundTrip { sleeps: true }),
        by_guest
    ),
    special!("irqfd.spin.msi", "irqfd to the handler of a running vCPU, MSI", || irqfd(
        false,
        true,
        Pace::Closed
    )),
    special!("irqfd.spin.ioapic", "the same through the I/O APIC", || irqfd(false, false, Pace::Closed)),
    special!("irqfd.hlt.msi", "irqfd to the handler of a halted vCPU, MSI", || irqfd(
        true,
        true,
        Pace::Closed
    )),
    special!("irqfd.hlt.ioapic", "the same through the I/O APIC", || irqfd(true, false, Pace::Closed)),
    special!("irqfd.open.msi", "10,000 a second to a halted vCPU, each from when it was due", || irqfd(
        true,
        true,
        Pace::Open
    )),
    special!(
        "ipi.self.xapic",
        "interrupt to itself through memory",
        || itself(&code::IPI_SELF_XAPIC, false),
        by_guest
    ),
    special!(
        "ipi.self.x2apic",
        "interrupt to itself through an MSR",
        || itself(&code::IPI_SELF_X2APIC, true),
        by_guest
    ),
    special!("ipi.spin.xapic", "to a running vCPU through memory", || ipi(false, false), by_guest),
    special!("ipi.spin.x2apic", "to a running vCPU through an MSR", || ipi(false, true), by_guest),
    special!("ipi.hlt.xapic", "to a halted vCPU through memory", || ipi(true, false), by_guest),
    special!("ipi.hlt.x2apic", "to a halted vCPU through an MSR", || ipi(true, true), by_guest),
    special!(
        "hlt.timer",
        "how late a deadline timer wakes a halted vCPU",
        || timer(single::deadlines),
        by_guest
    ),
    special!(
        "hlt.timer.nopoll",
        "the same without polling by KVM",
        || timer(single::deadlines_without_polling),
        by_guest
    ),
    special!("kick", "signal to a running vCPU until KVM_RUN returns", || Box::new(Kick)),
    special!(
        "mem.first.4k",
        "first touch of a page that the host does not have",
        || first(Backing::Small),
        by_guest
    ),
    special!(
        "mem.first.thp",
        "the same of a transparent huge page",
        || first(Backing::Transparent),
        by_guest
    ),
    special!("mem.first.huge", "the same of a reserved huge page", || first(Backing::Huge), by_guest),
    special!(
        "mem.first.file",
        "first write to a page of a file, mapped privately",
        || first(Backing::File),
        by_guest
    ),
    special!(
        "mem.first.uffd",
        "the same of a page that a thread has to give",
        || first(Backing::Userfault),
        by_guest
    ),
    special!("mem.mapped", "first touch of a page that the host has", || first(Backing::Mapped), by_guest),
    special!("dirty.wp", "first write to a page whose writes are logged", || Box::new(FirstWrite), by_guest),
    special!("dirty.get.0", "KVM_GET_DIRTY_LOG of 256 MiB, none written", || Box::new(GetLog(0))),
    special!("dirty.get.1", "the same, 1 % written", || Box::new(GetLog(1))),
    special!("dirty.get.100", "the same, all written", || Box::new(GetLog(100))),
];
