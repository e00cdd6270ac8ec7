//! The wiring of the PCI bus: how its functions' messages and kicks go past kite, straight between KVM and eventfds.
//!
//! A function's vectors have an interrupt ("GSI") each behind those of the I/O APIC, an irqfd that raises it, and, once the
//! guest has said what it is, a route that makes a message of it (KVM API, `KVM_SET_GSI_ROUTING`).

use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use boot::layout;
use devices::bus::{Bus, BusDevice, SharedDevice};
use devices::pci::memory::{Place, Placed, Window};
use devices::pci::msix::{ENTRY, Message, Messages, Msix};
use devices::pci::{Function, HostBridge, Page, Root, Shown};
use devices::virtio::Virtio;
use devices::virtio::transport::pci::{
    Doorbells, LATE, LATE_OF_ENTRY, MOST_QUEUES, NOTIFY, NOTIFY_STEP, REGION, TABLE, Vectors, VirtioFunction,
};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::host::event::kvm_event;
use crate::host::lock::lock;
use crate::vcpu::coalesced::Coalesced;
use crate::vm::Vm;
use crate::vm::config_space::ConfigSpace;
use crate::vm::device_thread::{Kicks, Notifier, QueueEvents};

/// The lines of one of the two 8259As.
const PIC_LINES: u32 = 8;
/// How many routes the lines have.
const LINE_ROUTES: usize = (layout::FIRST_MESSAGE_GSI + 2 * PIC_LINES) as usize;
/// The most messages there can be: a list of routes for KVM has 1,024.
const MOST_MESSAGES: usize = 1024 - LINE_ROUTES;

/// Of how many vectors of a function KVM keeps what the guest writes into the table.
const MOST_LATE_ENTRIES: usize = 16;

/// The bus while it is being built: its functions so far, the host bridge first.
pub(super) struct PciBus {
    pages: Arc<ConfigSpace>,
    routes: Arc<Routes>,
    coalesced: Arc<Coalesced>,
    functions: Vec<Shown>,
    placed: Vec<Placed>,
    names: Vec<String>,
}

impl PciBus {
    /// A bus whose configuration space is `pages`, with a host bridge.
    pub fn new(vm: &Vm, pages: &Arc<ConfigSpace>, coalesced: &Arc<Coalesced>) -> Self {
        let bridge: Arc<Mutex<dyn Function>> = Arc::new(Mutex::new(HostBridge::new()));
        let page: Box<dyn Page> = Box::new(pages.page(0));
        let routes = Routes { vm: vm.fd().clone(), messages: Mutex::default() };
        Self {
            pages: pages.clone(),
            routes: Arc::new(routes),
            coalesced: coalesced.clone(),
            functions: vec![(bridge, page)],
            placed: Vec::new(),
            names: Vec::new(),
        }
    }

    /// The vectors of a device with `queues` queues.
    ///
    /// # Errors
    /// The host refuses what they need.
    pub fn vectors(&self, queues: usize) -> anyhow::Result<Arc<Vectors>> {
        ensure!(
            queues <= MOST_QUEUES,
            "a device over PCI has {MOST_QUEUES} queues at most, and not {queues}"
        );
        let count = queues + 1;
        let messages = self.routes.add(count)?;
        Ok(Arc::new(Vectors::new(Arc::new(Msix::new(count, Box::new(messages))), queues)))
    }

    /// Puts a device on the bus; returns who connects its kicks.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn add(
        &mut self,
        name: String,
        virtio: Arc<Mutex<Virtio>>,
        vectors: Arc<Vectors>,
        events: Arc<QueueEvents>,
    ) -> anyhow::Result<Arc<FunctionKicks>> {
        let index = self.placed.len();
        ensure!(
            index < layout::PCI_MAX as usize,
            "there is room for {} devices: use fewer disks and networks",
            layout::PCI_MAX
        );
        let window = layout::PCI_MEMORY..layout::PCI_MEMORY + layout::PCI_MEMORY_LEN;
        let place = Arc::new(Place::new(window.clone(), REGION));
        let base = window.start + REGION * index as u64;
        let notify = Arc::new(Notifier(events.clone()));
        let late = late(events.kicks().len() + 1);
        let (vm, coalesced, state) = (self.routes.vm.clone(), self.coalesced.clone(), Mutex::default());
        let kicks = Arc::new(FunctionKicks { vm, events, coalesced, late, state });
        let moved = Box::new(Moved(kicks.clone()));
        let function = VirtioFunction::new(virtio, vectors, notify, (place.clone(), base), moved);
        let function: Arc<Mutex<dyn Function>> = Arc::new(Mutex::new(function));
        self.placed.push((place, function.clone()));
        self.functions.push((function, Box::new(self.pages.page(index + 1))));
        self.names.push(name);
        Ok(kicks)
    }

    /// Puts the bus into memory space. Each function has a part of the window where it is at first, with a lock of its own: a
    /// vCPU that waits for one device does not hold up another vCPU at another device.
    ///
    /// # Errors
    /// Another device has the addresses.
    pub fn finish(self, mmio: &mut Bus) -> anyhow::Result<Arc<Mutex<Root>>> {
        let taken = "two devices share an address";
        let root = Arc::new(Mutex::new(Root::new(self.functions)));
        let space = ConfigWrites { root: root.clone(), coalesced: self.coalesced, is_used: false };
        let space: SharedDevice = Arc::new(Mutex::new(space));
        mmio.insert(layout::PCI_CONFIG, layout::PCI_CONFIG_LEN, space).context(taken)?;
        mmio.set_name(layout::PCI_CONFIG, "pci");
        let placed: Arc<[Placed]> = self.placed.into();
        let mut at = layout::PCI_MEMORY;
        let end = at + layout::PCI_MEMORY_LEN;
        let parts = self.names.iter().map(|name| (name.as_str(), REGION));
        let used = REGION * self.names.len() as u64;
        for (name, len) in parts.chain([("pci", end - at - used)]) {
            let window: SharedDevice = Arc::new(Mutex::new(Window::new(at, placed.clone())));
            mmio.insert(at, len, window).context(taken)?;
            mmio.set_name(at, name);
            at += len;
        }
        Ok(root)
    }
}

/// Configuration space as the guest writes it. From its first write on, what it writes for nothing makes no exit.
struct ConfigWrites {
    root: Arc<Mutex<Root>>,
    coalesced: Arc<Coalesced>,
    is_used: bool,
}

impl BusDevice for ConfigWrites {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.root).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut root = lock(&self.root);
        if !std::mem::replace(&mut self.is_used, true) {
            for (at, len) in root.idle() {
                self.coalesced.add_memory(layout::PCI_CONFIG + at, len);
            }
        }
        root.write(offset, data);
    }
}

/// The parts of the memory region of a function with so many vectors where writes may be late, an offset and a length each.
/// KVM takes its time over each.
fn late(vectors: usize) -> Vec<(u64, u32)> {
    let entries = (TABLE..).step_by(ENTRY as usize).map(|at| (at, LATE_OF_ENTRY));
    LATE.into_iter().chain(entries.take(vectors.min(MOST_LATE_ENTRIES))).collect()
}

/// The routes of all interrupts: those of the lines, as KVM has them at first, and what the guest has said of messages.
struct Routes {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<Option<Message>>>,
}

impl Routes {
    /// Interrupts for `count` vectors.
    fn add(self: &Arc<Self>, count: usize) -> anyhow::Result<FunctionMessages> {
        let mut messages = lock(&self.messages);
        let first = messages.len();
        ensure!(first + count <= MOST_MESSAGES, "a PCI bus has {MOST_MESSAGES} interrupts: use fewer queues");
        messages.resize(first + count, None);
        let connect = |index| {
            let (event, gsi) = (kvm_event()?, layout::FIRST_MESSAGE_GSI + index as u32);
            self.vm.register_irqfd(&event, gsi).with_context(|| format!("cannot connect GSI {gsi}"))?;
            Ok(event)
        };
        let events = (first..first + count).map(connect).collect::<anyhow::Result<_>>()?;
        Ok(FunctionMessages { routes: self.clone(), first, events })
    }

    fn set(&self, first: usize, new: &[Option<Message>]) {
        let mut messages = lock(&self.messages);
        messages[first..first + new.len()].copy_from_slice(new);
        let known = (layout::FIRST_MESSAGE_GSI..).zip(&*messages);
        let known = known.filter_map(|(gsi, message)| Some(message_route(gsi, (*message)?)));
        let routes: Vec<_> = lines().chain(known).collect();
        let set = KvmIrqRouting::from_entries(&routes).map(|routes| self.vm.set_gsi_routing(&routes));
        if !matches!(set, Ok(Ok(()))) {
            log::debug!("KVM refuses the routes of messages");
        }
    }
}

/// The routes of the lines: all 24 to the I/O APIC, and 16 to the 8259As too.
fn lines() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let route = |gsi, irqchip, pin| {
        let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
    };
    let pics = (0..2 * PIC_LINES).map(move |gsi| {
        let pic = if gsi < PIC_LINES { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        route(gsi, pic, gsi % PIC_LINES)
    });
    (0..layout::FIRST_MESSAGE_GSI).map(move |gsi| route(gsi, KVM_IRQCHIP_IOAPIC, gsi)).chain(pics)
}

fn message_route(gsi: u32, Message { address, data }: Message) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data,
        ..Default::default()
    };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() }
}

/// The messages of one function.
struct FunctionMessages {
    routes: Arc<Routes>,
    /// The index of the first vector among all.
    first: usize,
    events: Vec<EventFd>,
}

impl Messages for FunctionMessages {
    fn route(&self, messages: &[Option<Message>]) {
        self.routes.set(self.first, messages);
    }

    fn send(&self, vector: u16) {
        if let Some(event) = self.events.get(usize::from(vector)) {
            // Fails only if 2^64 - 1 messages wait to be delivered; one of them will do.
            let _ = event.write(1);
        }
    }
}

/// Has KVM write a function's events where its driver kicks, wherever the guest moves that.
pub(super) struct FunctionKicks {
    vm: Arc<VmFd>,
    events: Arc<QueueEvents>,
    coalesced: Arc<Coalesced>,
    /// The parts of the region where writes may be late.
    late: Vec<(u64, u32)>,
    state: Mutex<KickState>,
}

#[derive(Default)]
struct KickState {
    /// Where queue 0 is kicked.
    address: Option<u64>,
    /// The driver is up, or was once.
    enabled: bool,
    /// Where KVM writes the events of so many queues.
    connected: Option<(u64, usize)>,
}

impl FunctionKicks {
    fn each(&self, base: u64) -> impl Iterator<Item = (&EventFd, IoEventAddress)> {
        let addresses = (base..).step_by(NOTIFY_STEP as usize).map(IoEventAddress::Mmio);
        self.events.kicks().iter().zip(addresses)
    }

    /// Where writes may be late, if queue 0 is kicked at this address.
    fn late(&self, kicks: Option<u64>) -> impl Iterator<Item = (u64, u32)> {
        let region = kicks.map(|kicks| kicks - NOTIFY);
        region.into_iter().flat_map(|region| self.late.iter().map(move |(at, len)| (region + at, *len)))
    }

    /// Where KVM refuses, exits go on.
    fn connect(&self, state: &mut KickState) {
        let Some(base) = state.address.filter(|_| state.connected.is_none()) else { return };
        let connect = |(event, at): &(&EventFd, _)| self.vm.register_ioevent(event, at, NoDatamatch).is_ok();
        let count = self.each(base).take_while(connect).count();
        state.connected = Some((base, count));
    }

    /// The guest moved the region. Nothing is missed: a kick at the new place exits until the device's thread has connected
    /// it, and that serves every queue then.
    fn moved(&self, address: Option<u64>) {
        let mut state = lock(&self.state);
        if let Some((base, count)) = state.connected.take() {
            for (event, at) in self.each(base).take(count) {
                if let Err(error) = self.vm.unregister_ioevent(event, &at, NoDatamatch) {
                    log::debug!("cannot disconnect a kick: {error}");
                }
            }
        }
        // What waits in the ring for the old place was carried out before this move.
        self.late(state.address).for_each(|(at, len)| self.coalesced.remove_memory(at, len));
        self.late(address).for_each(|(at, len)| self.coalesced.add_memory(at, len));
        state.address = address;
        if state.enabled {
            self.events.driver_ok();
        }
    }
}

impl Kicks for Arc<FunctionKicks> {
    fn enable(&mut self, _events: &QueueEvents) {
        let mut state = lock(&self.state);
        state.enabled = true;
        self.connect(&mut state);
    }
}

/// Hears of a function's moves.
struct Moved(Arc<FunctionKicks>);

impl Doorbells for Moved {
    fn moved(&self, address: Option<u64>) {
        self.0.moved(address);
    }
}

const _: () = assert!(REGION * layout::PCI_MAX as u64 <= layout::PCI_MEMORY_LEN, "all functions have room");
