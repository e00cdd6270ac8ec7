//! Save and load, by the library.

use std::env;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use boot::Piece;
use boot::kernel::Image;
use boot::testing::{Code, Entry};
use devices::chipset::serial::Host;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, Target};
use devices::virtio::console::{self, Console, Port};
use devices::virtio::fs::Share;
use devices::virtio::net::{Net, Stream};

use devices::virtio::rng::Rng;
use kite::backend::Backend;
use kite::backend::disk::OpenDisk;
use kite::backend::screen::Display;
use kite::backend::share::SharedFolder;
use kite::observe::trace::Timeline;
use kite::spec::device::{DeviceSpec, ScreenSpec};
use kite::spec::machine::TransportSpec;
use kite::spec::{MachineSpec, disk};
use kite::vm::load::Guest;
use kite::vm::machine::{Machine, Running};
use kite::vm::memory::GuestRam;
use kite::vm::snapshot::MachineState;
use kvm_ioctls::Kvm;
use serde_json::{Value, json};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::pci::ASKS_OVER_PCI_FOR_EVER;
use crate::support::guest::{Elf, RESULTS};
use crate::support::{guarded, kvm, skipped, until};
use crate::virtio::ASKS_FOR_ENTROPY_FOR_EVER;

const RAM: u64 = 64 << 20;
/// The screen that a machine has.
const SCREEN: ScreenSpec = ScreenSpec { width: 64, height: 64 };
/// How many virtio devices a machine has.
const DEVICES: u32 = 9;
/// How many devices its chipset has: serial port, clock, keyboard controller, power management, pvpanic.
const CHIPSET: usize = 5;
/// MSRs that go on while a machine is still: the TSC, and Hyper-V's run time and reference counter, which KVM always has.
const RUNNING_MSRS: [u64; 3] = [0x10, 0x4000_0010, 0x4000_0020];
/// SYSENTER_ESP and SYSENTER_EIP: on AMD's processors, whose 64-bit mode has no SYSENTER, KVM answers with 64 bits what a
/// guest has set, and takes 32.
const SYSENTER_MSRS: [u64; 2] = [0x175, 0x176];
/// Registers of the local APIC that change by themselves: the count that its timer counts down, and the processor's priority,
/// which follows from others and which KVM computes when it needs it (Intel SDM volume 3, §11.8.3.1).
const CHANGING: [std::ops::Range<usize>; 2] = [0x390..0x394, 0xa0..0xa4];

/// Where the guest's driver has the used ring's index.
const USED_INDEX: u64 = 0x22_2002;

/// The host's end of consoles without a reader.
struct NoReader;

impl Host for NoReader {
    fn output_ready(&self) {}
    fn input_wanted(&self) {}
}

impl console::Host for NoReader {
    fn output_ready(&self) {}
    fn changed(&self) {}
}

/// What the devices of all machines of one test are connected to.
struct Backends {
    disk: OpenDisk,
    share: SharedFolder,
    display: Display,
    /// The host's end of the network's socket is never read.
    network: (UnixStream, UnixStream),
    /// What their memory has, in bytes.
    memory: u64,
    transport: TransportSpec,
    _files: TempDir,
}

impl Backends {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let image = files.path().join("disk.img");
        fs::write(&image, [0; 4096]).unwrap();
        Self::with(image.to_str().unwrap(), files, RAM)
    }

    /// With `disk` as an option has it, and a folder that is shared.
    fn with(disk: &str, files: TempDir, memory: u64) -> Self {
        let disk = disk::parse(disk).unwrap().open(0, 2).unwrap();
        let share = Share::new("share", File::open(files.path()).unwrap().into(), true);
        let share = SharedFolder::new(0, Arc::new(share));
        let (display, network) = (Display::new(SCREEN.size()).unwrap(), UnixStream::pair().unwrap());
        let transport = TransportSpec::Mmio;
        Self { disk, share, display, network, memory, transport, _files: files }
    }

    /// The same on a PCI bus.
    fn on_pci(mut self) -> Self {
        self.transport = TransportSpec::Pci;
        self
    }

    /// A new device of each kind, for a machine with `ram`.
    fn devices(&self, ram: &GuestRam) -> Vec<Box<dyn VirtioDevice>> {
        let hvc = Arc::new(Port::new("", Box::new(NoReader)).unwrap());
        let port = Arc::new(Port::new("port", Box::new(NoReader)).unwrap());
        let balloon = Balloon::new(Arc::new(Target::new().unwrap()));
        let stream = Stream::new(self.network.0.try_clone().unwrap(), None).unwrap();
        let mut devices = vec![
            self.disk.device(ram).unwrap(),
            Box::new(Net::new("net0", Box::new(stream), [2, 0, 0, 0, 0, 1])),
            self.share.device(ram).unwrap(),
            Box::new(Console::new(Some(hvc), vec![port])),
            Box::new(balloon),
            Box::new(Rng),
        ];
        devices.extend(self.display.backends().iter().map(|backend| backend.device(ram).unwrap()));
        devices
    }

    /// A machine of two vCPUs with every device, and its memory.
    fn machine(&self, kvm: &Kvm) -> (Machine, Arc<GuestRam>) {
        let ram = GuestRam::new(self.memory).unwrap();
        let mut ram = ram.with_frame_buffer(SCREEN.frame_buffer().len()).unwrap();
        if self.spec().has_pci() {
            ram = ram.with_config_space(DEVICES).unwrap();
        }
        let ram = Arc::new(ram);
        let (console, devices) = (Box::new(NoReader), self.devices(&ram));
        let machine =
            Machine::build(kvm, &mut None, &self.spec(), ram.clone(), console, devices, &Timeline::default())
                .unwrap();
        (machine, ram)
    }

    fn spec(&self) -> MachineSpec {
        let Self { memory, transport, .. } = *self;
        let devices = vec![DeviceSpec::Screen(SCREEN)];
        MachineSpec { cpus: 2, memory, transport, devices, ..MachineSpec::default() }
    }

    /// Boots `guest`.
    fn boot(&self, kvm: &Kvm, guest: &'static Code) -> Running {
        let elf = Elf::new(guest.code(), Entry::Long);
        self.boot_kernel(kvm, &elf.path, &[], "")
    }

    /// Boots the kernel at `path`.
    fn boot_kernel(&self, kvm: &Kvm, path: &Path, initrd: &[Piece], cmdline: &str) -> Running {
        let image = Image::open(path).unwrap();
        let (mut machine, ram) = self.machine(kvm);
        let guest = Guest { image: &image, initrd, cmdline, module: "" };
        let info = guest.load(&self.spec(), DEVICES, &ram, &Timeline::default()).unwrap();
        machine.boot(&image, info).unwrap();
        self.display.begin(machine.vm());
        let running = machine.start().unwrap();
        running.release();
        running
    }

    /// A new machine that goes on where `state` and the memory of `from` are.
    fn load(&self, kvm: &Kvm, state: &MachineState, from: &Running) -> Running {
        let (mut machine, ram) = self.machine(kvm);
        for (from, to) in from.ram().saved().zip(ram.saved()) {
            for region in from.iter() {
                let mut all = vec![0; region.len() as usize];
                from.read_slice(&mut all, region.start_addr()).unwrap();
                to.write_slice(&all, region.start_addr()).unwrap();
            }
        }
        self.display.begin(machine.vm());
        machine.load(state).unwrap();
        machine.start().unwrap()
    }
}

fn counter(running: &Running) -> u64 {
    running.ram().memory().read_obj(GuestAddress(RESULTS)).unwrap()
}

/// The state as JSON, without what goes on in a machine that is still.
fn settled(state: &MachineState) -> Value {
    let mut state = serde_json::to_value(state).unwrap();
    state["vm"]["clock"] = Value::Null;
    for vcpu in state["vcpus"].as_array_mut().unwrap() {
        let msrs: Vec<(u64, u64)> = serde_json::from_value(vcpu["msrs"].take()).unwrap();
        let settled = msrs.into_iter().filter(|(index, _)| !RUNNING_MSRS.contains(index));
        let settled = settled.map(|(index, value)| {
            let value = if SYSENTER_MSRS.contains(&index) { value & 0xffff_ffff } else { value };
            (format!("{index:#x}"), json!(value))
        });
        vcpu["msrs"] = settled.collect();
        for byte in CHANGING.into_iter().flatten() {
            vcpu["lapic"][byte] = json!(0);
        }
    }
    state
}

/// Where `one` and `other` differ.
fn differences(path: &str, one: &Value, other: &Value) -> Vec<String> {
    match (one, other) {
        (Value::Object(fields), Value::Object(_)) => fields
            .iter()
            .flat_map(|(name, value)| differences(&format!("{path}.{name}"), value, &other[name]))
            .collect(),
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            let pairs = items.iter().zip(others).enumerate();
            pairs.flat_map(|(at, (one, other))| differences(&format!("{path}[{at}]"), one, other)).collect()
        }
        _ if one == other => Vec::new(),
        _ => vec![format!("{path}: {one} becomes {other}")],
    }
}

guest!(
    COUNTS,
    // The count is in a general and a vector register and in a debug register; memory has it once they agree.
    "mov rax, cr0
     and eax, 0xfffffffb
     or eax, 2
     mov cr0, rax
     mov rax, cr4
     or eax, 0x600
     mov cr4, rax
     xor ebx, ebx
     mov edi, 0x200000
     mov dx, 0x1234
     2: mov [rdi + 16], rbx
     movdqu xmm7, [rdi + 16]
     mov dr3, rbx
     in al, dx
     movdqu [rdi + 32], xmm7
     mov rax, [rdi + 32]
     cmp rax, rbx
     jne 3f
     mov rcx, dr3
     cmp rcx, rbx
     jne 3f
     inc rbx
     mov [rdi], rbx
     jmp 2b
     3: mov qword ptr [rdi + 8], 1
     cli
     4: hlt
     jmp 4b"
);

#[test]
fn a_loaded_machine_has_the_saved_state_and_goes_on() {
    needs!(kvm());
    guarded(|| {
        let kvm = kite::vm::open_kvm().unwrap();
        let backends = Backends::new();
        let mut running = backends.boot(&kvm, &COUNTS);
        for _ in 0..4 {
            until("the guest to count", || counter(&running) > 1000);
            let mut paused = running.pause().unwrap();
            let saved = paused.save(&kvm).unwrap();
            let text = serde_json::to_string(&saved).unwrap();
            let saved: MachineState = serde_json::from_str(&text).unwrap();
            let next = backends.load(&kvm, &saved, &running);
            drop(paused);
            drop(running);
            let mut paused = next.pause().unwrap();
            let again = paused.save(&kvm).unwrap();
            let differences = differences("state", &settled(&saved), &settled(&again));
            assert!(differences.is_empty(), "{differences:#?}");
            drop(paused);
            let before = counter(&next);
            until("the loaded guest to count", || counter(&next) > before);
            let failed: u64 = next.ram().memory().read_obj(GuestAddress(RESULTS + 8)).unwrap();
            assert_eq!(failed, 0, "a register has lost its value");
            running = next;
        }
        assert!(running.exit().reason().is_none(), "{:?}", running.exit().reason());
    });
}

#[test]
fn a_driver_s_requests_go_on_in_loaded_machines() {
    needs!(kvm());
    requests_go_on(Backends::new(), &ASKS_FOR_ENTROPY_FOR_EVER, CHIPSET);
}

#[test]
fn requests_on_a_pci_bus_go_on_in_loaded_machines() {
    needs!(kvm());
    requests_go_on(Backends::new().on_pci(), &ASKS_OVER_PCI_FOR_EVER, CHIPSET + 1);
}

/// Saves and loads machines of `guest`, which asks a device, and have so many devices beside those of virtio.
fn requests_go_on(backends: Backends, guest: &'static Code, others: usize) {
    guarded(move || {
        let kvm = kite::vm::open_kvm().unwrap();
        let mut running = backends.boot(&kvm, guest);
        let used =
            |running: &Running| running.ram().memory().read_obj::<u16>(GuestAddress(USED_INDEX)).unwrap();
        for _ in 0..5 {
            let before = used(&running);
            until("requests to be answered", || used(&running).wrapping_sub(before) > 50);
            let mut paused = running.pause().unwrap();
            let saved = paused.save(&kvm).unwrap();
            let next = backends.load(&kvm, &saved, &running);
            let mut paused_next = next.pause().unwrap();
            let again = paused_next.save(&kvm).unwrap();
            assert_eq!(saved.devices.len(), others + DEVICES as usize);
            assert_eq!(saved.devices, again.devices);
            drop(paused_next);
            next.release();
            drop(paused);
            drop(running);
            running = next;
        }
        let before = used(&running);
        until("the last machine's requests to be answered", || used(&running) != before);
        assert!(running.exit().reason().is_none(), "{:?}", running.exit().reason());
    });
}

guest!(
    // Each pixel is its number; then it counts in the first.
    COUNTS_ON_THE_SCREEN,
    map_apics!(),
    "mov ebx, 0x201800
     mov dword ptr [rbx], 0xe0000083
     mov edi, 0xe0000000
     xor eax, eax
     2: mov [rdi + rax * 4], eax
     inc eax
     cmp eax, 4096
     jb 2b
     mov ebx, 0x200000
     3: inc dword ptr [rdi]
     mov eax, [rdi]
     mov [rbx], rax
     jmp 3b"
);

#[test]
fn a_loaded_machine_shows_what_was_on_the_screen_and_draws_on() {
    needs!(kvm());
    guarded(|| {
        let kvm = kite::vm::open_kvm().unwrap();
        let backends = Backends::new();
        let mut running = backends.boot(&kvm, &COUNTS_ON_THE_SCREEN);
        let shown = || {
            let (surface, mut pixels) = (backends.display.screen().surface(), vec![0; 64 * 64]);
            (0..64).zip(pixels.chunks_mut(64)).for_each(|(y, row)| surface.read(0, y, row));
            pixels
        };
        for _ in 0..3 {
            let before = counter(&running);
            until("the guest to count", || counter(&running) > before + 1000);
            let mut paused = running.pause().unwrap();
            let saved = paused.save(&kvm).unwrap();
            let picture = shown();
            assert!(picture[1..].iter().copied().eq(1..4096), "{picture:x?}");
            let next = backends.load(&kvm, &saved, &running);
            drop(paused);
            drop(running);
            assert!(shown() == picture, "the picture is another");
            let mut viewer = backends.display.screen().attach().unwrap();
            assert!(viewer.look().replaced);
            next.release();
            // What is known of changes is pages.
            until("the loaded guest to draw", || viewer.look().rows == [0..16]);
            running = next;
        }
        assert!(running.exit().reason().is_none(), "{:?}", running.exit().reason());
    });
}

/// What a Linux guest is booted from: `cargo xtask test state` sets these.
const LINUX: [&str; 3] = ["STATE_KERNEL", "STATE_INITRD", "STATE_DISK"];
/// The memory of a Linux guest, in bytes.
const LINUX_RAM: u64 = 512 << 20;

/// What a guest prints, of which whole lines are taken.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines `tick NUMBER UPTIME CHECKSUM...` that have come; the first line may be the rest of one.
    fn ticks(&mut self, running: &Running) -> Vec<Vec<String>> {
        running.serial().lock().unwrap().take_output(&mut self.0);
        let text = String::from_utf8_lossy(&self.0);
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let ticks = whole.lines().filter_map(|line| line.trim().strip_prefix("tick "));
        ticks.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }
}

#[test]
fn a_linux_guest_goes_on_with_its_clock_disk_and_share_in_loaded_machines() {
    let test = "a_linux_guest_goes_on_with_its_clock_disk_and_share_in_loaded_machines";
    let [Some(kernel), Some(initrd), Some(disk)] = LINUX.map(env::var_os) else {
        return skipped(test, "cargo xtask test state runs it, where KVM can run Linux");
    };
    guarded(move || {
        let kvm = kite::vm::open_kvm().unwrap();
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("file"), "shared\n").unwrap();
        let disk = format!("path={},ephemeral", disk.to_str().unwrap());
        let backends = Backends::with(&disk, files, LINUX_RAM);
        let initrd = File::open(initrd).unwrap();
        let len = initrd.metadata().unwrap().len();
        let initrd = [Piece::File { file: Arc::new(initrd), offset: 0, len }];
        let mut running = backends.boot_kernel(&kvm, Path::new(&kernel), &initrd, "console=ttyS0 quiet");
        let (mut last, mut checksums) = ((0, 0.0), Vec::new());
        for _ in 0..4 {
            let mut lines = Lines::default();
            until("the guest to tick", || lines.ticks(&running).len() >= 3);
            for tick in lines.ticks(&running) {
                let (number, uptime): (u64, f64) = (tick[0].parse().unwrap(), tick[1].parse().unwrap());
                assert!(number > last.0 && uptime >= last.1, "{number} at {uptime} follows {last:?}");
                last = (number, uptime);
                checksums.push(tick[2..].to_vec());
            }
            let mut paused = running.pause().unwrap();
            let saved = paused.save(&kvm).unwrap();
            let text = serde_json::to_string(&saved).unwrap();
            let saved: MachineState = serde_json::from_str(&text).unwrap();
            let next = backends.load(&kvm, &saved, &running);
            let mut again = next.pause().unwrap();
            let differences = differences("state", &settled(&saved), &settled(&again.save(&kvm).unwrap()));
            assert!(differences.is_empty(), "{differences:#?}");
            drop(again);
            drop(paused);
            drop(running);
            next.release();
            running = next;
        }
        assert!(running.exit().reason().is_none(), "{:?}", running.exit().reason());
        checksums.dedup();
        assert_eq!(checksums.len(), 1, "files change: {checksums:?}");
        assert_eq!(checksums[0].last().map(String::as_str), Some("shared"));
    });
}
