//! Save and load, by the library.

use std::sync::Arc;

use boot::kernel::Image;
use boot::testing::{Code, Entry};
use devices::chipset::serial::Host;
use kite::observe::trace::Timeline;
use kite::spec::MachineSpec;
use kite::vm::load::Guest;
use kite::vm::machine::{Machine, Running};
use kite::vm::memory::GuestRam;
use kite::vm::snapshot::MachineState;
use kvm_ioctls::Kvm;
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress};

use crate::support::guest::{Elf, RESULTS};
use crate::support::{guarded, no_kvm, until};

const RAM: u64 = 64 << 20;
/// MSRs that go on while a machine is still: the TSC.
const RUNNING_MSRS: [u64; 1] = [0x10];
/// The registers of the local APIC that its timer counts down.
const CURRENT_COUNT: std::ops::Range<usize> = 0x390..0x394;

/// The host's end of a serial line that nobody is at.
struct Nobody;

impl Host for Nobody {
    fn output_ready(&self) {}
    fn input_wanted(&self) {}
}

/// A machine of two vCPUs, and its memory.
fn built(kvm: &Kvm) -> (Machine, Arc<GuestRam>) {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    let machine =
        Machine::build(kvm, &spec(), ram.clone(), Box::new(Nobody), Vec::new(), &Timeline::default())
            .unwrap();
    (machine, ram)
}

fn spec() -> MachineSpec {
    MachineSpec { cpus: 2, memory: RAM, ..MachineSpec::default() }
}

/// Boots `guest`.
fn boot(kvm: &Kvm, guest: &'static Code) -> Running {
    let elf = Elf::new(guest.code(), Entry::Long);
    let image = Image::open(&elf.path).unwrap();
    let (mut machine, ram) = built(kvm);
    let guest = Guest { image: &image, initrd: &[], cmdline: "", module: "" };
    let info = guest.load(&spec(), 0, &ram, &Timeline::default()).unwrap();
    machine.boot(&image, info).unwrap();
    let running = machine.start().unwrap();
    running.release();
    running
}

/// A new machine that goes on where `state` and the memory of `from` are.
fn load(kvm: &Kvm, state: &MachineState, from: &Running) -> Running {
    let (mut machine, ram) = built(kvm);
    let mut all = vec![0; RAM as usize];
    from.ram().memory().read_slice(&mut all, GuestAddress(0)).unwrap();
    ram.memory().write_slice(&all, GuestAddress(0)).unwrap();
    machine.load(state).unwrap();
    machine.start().unwrap()
}

fn counter(running: &Running) -> u64 {
    running.ram().memory().read_obj(GuestAddress(RESULTS)).unwrap()
}

/// The state as JSON, without what goes on in a machine that is still.
fn settled(state: &MachineState) -> Value {
    let mut state = serde_json::to_value(state).unwrap();
    state["vm"]["clock"] = Value::Null;
    for vcpu in state["vcpus"].as_array_mut().unwrap() {
        let msrs = vcpu["msrs"].as_array_mut().unwrap();
        msrs.retain(|msr| !RUNNING_MSRS.contains(&msr[0].as_u64().unwrap()));
        for byte in CURRENT_COUNT {
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
    if no_kvm("a_loaded_machine_has_the_saved_state_and_goes_on") {
        return;
    }
    guarded(|| {
        let kvm = kite::vm::open_kvm().unwrap();
        let mut running = boot(&kvm, &COUNTS);
        for _ in 0..4 {
            until("the guest to count", || counter(&running) > 1000);
            let mut paused = running.pause().unwrap();
            let saved = paused.save(&kvm).unwrap();
            let text = serde_json::to_string(&saved).unwrap();
            let saved: MachineState = serde_json::from_str(&text).unwrap();
            let next = load(&kvm, &saved, &running);
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
