//! The board's part of `--test-devices`: where what KVM's unit tests expect sits, and what it asks of KVM.
//!
//! Nothing of this exists without the option.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use boot::layout;
use devices::bus::{Bus, BusDevice, SharedDevice};
use devices::chipset::testdev::{
    BAR_LEN, ConfigPorts, DebugExit, Doorbell, EndTest, Flush, FlushPage, FwCfg, Latch, Lines, PciTest,
    Place, PmTimer, Scratch, SetLine, Window, Wiring,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::host::event::kvm_event;
use crate::spec::MachineSpec;
use crate::vcpu::stop::{Exit, ExitRequest};
use crate::vm::Vm;
use crate::vm::memory::GuestRam;

/// Puts the devices on the board.
///
/// # Errors
/// The host refuses what they need.
pub fn add(
    spec: &MachineSpec,
    vm: &Vm,
    exit: &Arc<ExitRequest>,
    ports: &mut Bus,
    mmio: &mut Bus,
) -> anyhow::Result<()> {
    vm.create_pit()?;
    vm.start_timer()?;
    let start = Instant::now();
    let elapsed = Box::new(move || start.elapsed());
    let cpus = u16::try_from(spec.cpus).unwrap_or(u16::MAX);
    let wiring = Wiring { memory: layout::PCI_TEST_MEMORY as u32, port: layout::PCI_TEST_PORT };
    let function = Arc::new(Mutex::new(PciTest::new(wiring, Box::new(vm.doorbell()?))));
    let [memory_len, port_len] = BAR_LEN.map(u64::from);
    let at_ports: [(u16, u64, &str, SharedDevice); 9] = [
        (layout::DEBUG_EXIT_PORT, DebugExit::LEN, "debug exit", shared(DebugExit(exit.clone()))),
        (layout::LATCH_PORT, Latch::LEN, "latch", shared(Latch::new("latch"))),
        (layout::FLUSH_PORT, Flush::LEN, "page flush", shared(Flush(Box::new(Pages(vm.ram().clone()))))),
        (layout::BYTE_LATCH_PORT, Latch::LEN, "byte latch", shared(Latch::new("byte latch"))),
        (layout::LINES_PORT, Lines::LEN, "lines", shared(Lines(Box::new(vm.levels())))),
        (layout::FW_CFG_PORT, FwCfg::LEN, "fw_cfg", shared(FwCfg::new(cpus, spec.memory))),
        (layout::PM_TIMER_PORT, PmTimer::LEN, "PM timer", shared(PmTimer::new(elapsed))),
        (
            layout::PCI_CONFIG_PORT,
            ConfigPorts::LEN,
            "PCI configuration",
            shared(ConfigPorts::new(function.clone())),
        ),
        (layout::PCI_TEST_PORT, port_len, "pci-testdev", shared(Window::new(function.clone(), Place::Port))),
    ];
    for (port, len, name, device) in at_ports {
        ports.insert(port.into(), len, device).context("two devices share a port")?;
        ports.set_name(port.into(), name);
    }
    let window = shared(Window::new(function, Place::Memory));
    mmio.insert(layout::PCI_TEST_MEMORY, memory_len, window)
        .and_then(|()| mmio.insert(layout::SCRATCH, Scratch::LEN, shared(Scratch::new("scratch"))))
        .context("two devices share an address")?;
    mmio.set_name(layout::PCI_TEST_MEMORY, "pci-testdev");
    mmio.set_name(layout::SCRATCH, "scratch");
    Ok(())
}

fn shared(device: impl BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

impl EndTest for ExitRequest {
    fn end(&self, code: u8) {
        self.request(Exit::Status(code));
    }
}

/// Guest memory, for its pages to be flushed.
struct Pages(Arc<GuestRam>);

impl FlushPage for Pages {
    fn flush(&self, page: u64) {
        self.0.flush_page(page);
    }
}

/// The lines of a virtual machine, by their level.
pub struct Levels(Arc<VmFd>);

impl Levels {
    /// Those of `vm`, which has interrupt controllers.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self(vm)
    }
}

impl SetLine for Levels {
    fn set(&self, gsi: u32, up: bool) {
        if let Err(error) = self.0.set_irq_line(gsi, up) {
            log::debug!("cannot drive GSI {gsi}: {error}");
        }
    }
}

/// An eventfd that KVM writes instead of an exit.
pub struct Ioeventfd {
    vm: Arc<VmFd>,
    event: EventFd,
    connected: Option<(IoEventAddress, Option<u8>)>,
}

impl Ioeventfd {
    /// One that is connected to nothing.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(vm: Arc<VmFd>) -> anyhow::Result<Self> {
        let event = kvm_event()?;
        Ok(Self { vm, event, connected: None })
    }
}

impl Doorbell for Ioeventfd {
    fn connect(&mut self, place: Place, offset: u32, data: Option<u8>) -> bool {
        let address = match place {
            Place::Memory => IoEventAddress::Mmio(layout::PCI_TEST_MEMORY + u64::from(offset)),
            Place::Port => IoEventAddress::Pio(u64::from(layout::PCI_TEST_PORT) + u64::from(offset)),
        };
        let connected = match data {
            Some(data) => self.vm.register_ioevent(&self.event, &address, data),
            None => self.vm.register_ioevent(&self.event, &address, NoDatamatch),
        };
        match connected {
            Ok(()) => self.connected = Some((address, data)),
            Err(error) => log::debug!("KVM refuses an ioeventfd: {error}"),
        }
        self.connected.is_some()
    }

    fn disconnect(&mut self) {
        let Some((address, data)) = self.connected.take() else { return };
        let gone = match data {
            Some(data) => self.vm.unregister_ioevent(&self.event, &address, data),
            None => self.vm.unregister_ioevent(&self.event, &address, NoDatamatch),
        };
        if let Err(error) = gone {
            log::debug!("KVM keeps an ioeventfd: {error}");
        }
    }

    fn take(&mut self) -> u32 {
        // Empty is an error, and means none.
        self.event.read().unwrap_or(0) as u32
    }
}
