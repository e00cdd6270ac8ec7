//! Pause, resume and stop, by the library.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use boot::kernel::Image;
use boot::testing::{BASE, Code, Entry};
use devices::bus::BusDevice;
use devices::chipset::serial::Host;
use kite::observe::trace::Timeline;
use kite::spec::MachineSpec;
use kite::vcpu::registers::Activity;
use kite::vcpu::stop::Exit;
use kite::vm::load::Guest;
use kite::vm::machine::{Machine, Running};
use kite::vm::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::exits::join;
use crate::rig::{Recorder, Rig};
use crate::support::guest::{Elf, RESULTS, printed_in_a_hurry};
use crate::support::{guarded, kvm, until};

const TIMES: usize = 200;

/// The host's end of a serial line that nobody is at.
struct Nobody;

impl Host for Nobody {
    fn output_ready(&self) {}
    fn input_wanted(&self) {}
}

/// Runs `guest` on a board with two vCPUs, of which the second waits to be started.
fn run(guest: &'static Code) -> Running {
    let elf = Elf::new(guest.code(), Entry::Long);
    let image = Image::open(&elf.path).unwrap();
    let spec = MachineSpec { cpus: 2, memory: 64 << 20, ..MachineSpec::default() };
    let ram = Arc::new(GuestRam::new(spec.memory).unwrap());
    let timeline = Timeline::default();
    let guest = Guest { image: &image, initrd: &[], cmdline: "", module: "" };
    let info = guest.load(&spec, 0, &ram, &timeline).unwrap();
    let kvm = kite::vm::open_kvm().unwrap();
    let mut machine =
        Machine::build(&kvm, &mut None, &spec, ram, Box::new(Nobody), Vec::new(), &timeline).unwrap();
    machine.boot(&image, info).unwrap();
    let running = machine.start().unwrap();
    running.release();
    running
}

fn counter(running: &Running) -> u64 {
    running.ram().memory().read_obj(GuestAddress(RESULTS)).unwrap()
}

guest!(
    COUNT,
    "mov edi, 0x200000
     mov dx, 0x1234
     2: inc qword ptr [rdi]
     in al, dx
     jmp 2b"
);

#[test]
fn a_paused_guest_stands_still_and_a_resumed_one_goes_on() {
    needs!(kvm());
    guarded(|| {
        let running = run(&COUNT);
        for time in 0..TIMES {
            let paused = running.pause_vcpus();
            let paused_at = counter(&running);
            thread::sleep(Duration::from_millis(1));
            assert_eq!(counter(&running), paused_at, "pause {time}");
            drop(paused);
            until("the counter to go on", || counter(&running) > paused_at);
        }
        assert!(running.exit().reason().is_none());
    });
}

guest!(HURRY, print_in_a_hurry!(), "mov ebx, 0x200000\n mov byte ptr [rbx], 1\n cli\n 2: hlt\n jmp 2b");

#[test]
fn a_paused_or_stopped_guest_has_sent_all_that_it_wrote() {
    needs!(kvm());
    guarded(|| {
        for pause in [true, false] {
            let mut running = run(&HURRY);
            until("the guest to have printed", || counter(&running) == 1);
            let paused = pause.then(|| running.pause_vcpus().is_complete());
            assert_ne!(paused, Some(false));
            if !pause {
                running.stop();
            }
            let mut output = Vec::new();
            running.serial().lock().unwrap().take_output(&mut output);
            assert!(output == printed_in_a_hurry(), "{} bytes, and not the right ones", output.len());
        }
    });
}

guest!(HALTED, "cli\n 2: hlt\n jmp 2b");
guest!(SPINNING, "2: jmp 2b");
guest!(AWAITS, "2: sti\n hlt\n jmp 2b");

#[test]
fn any_guest_can_be_paused_and_stopped_at_any_time() {
    needs!(kvm());
    guarded(|| {
        for guest in [&HALTED, &SPINNING, &COUNT] {
            drop(run(guest));
            let running = run(guest);
            for _ in 0..TIMES {
                drop(running.pause_vcpus());
                drop(running.pause().unwrap());
            }
            drop(running);
            let mut running = run(guest);
            running.pause_vcpus().forget();
            running.stop();
            assert!(running.exit().reason().is_none());
        }
    });
}

#[test]
fn a_vcpu_tells_its_state_while_it_is_still() {
    needs!(kvm());
    guarded(|| {
        let mut running = run(&SPINNING);
        for _ in 0..TIMES {
            let paused = running.pause_vcpus();
            let state = running.states().remove(0).unwrap();
            assert_eq!((state.regs.rip, state.activity), (BASE, Activity::Runs));
            drop(paused);
            assert!(running.states()[0].is_none(), "it runs");
        }
        running.exit().request(Exit::Crash("for this test".to_owned()));
        running.stop();
        assert_eq!(running.states().remove(0).unwrap().regs.rip, BASE);
    });
}

#[test]
fn a_vcpu_that_has_halted_for_ever_is_told_from_one_that_waits() {
    needs!(kvm());
    guarded(|| {
        for (guest, dead) in [(&HALTED, true), (&AWAITS, false)] {
            let running = run(guest);
            let halted = || {
                let paused = running.pause_vcpus();
                let state = running.states().remove(0).unwrap();
                drop(paused);
                assert!(dead || !state.is_dead());
                state.activity == Activity::Halted && state.is_dead() == dead
            };
            until("the vCPU to halt", halted);
        }
    });
}

guest!(BREAKS, "mov eax, 0x77\n ud2");

#[test]
fn a_vcpu_that_has_ended_tells_how_it_stood() {
    needs!(kvm());
    guarded(|| {
        let mut running = run(&BREAKS);
        until("the guest to end", || running.exit().reason().is_some());
        drop(running.pause_vcpus());
        let paused = running.pause_vcpus();
        let state = running.states().remove(0).unwrap();
        drop(paused);
        assert!(state.is_reset() || state.regs.rax == 0x77, "{state:?}");
        running.stop();
        assert_eq!(running.states().remove(0).unwrap().regs, state.regs);
    });
}

guest!(ENDED, power_off!());

#[test]
fn a_guest_that_has_ended_can_still_be_paused_and_resumed() {
    needs!(kvm());
    guarded(|| {
        let running = run(&ENDED);
        until("the guest to end", || running.exit().reason().is_some());
        drop(running.pause_vcpus());
        drop(running.pause().unwrap());
    });
}

/// Gives 1, 2, 3 and so on, as 32-bit numbers.
#[derive(Default)]
struct Numbers {
    last: u32,
}

impl BusDevice for Numbers {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        for number in data.chunks_mut(4) {
            self.last += 1;
            number.copy_from_slice(&self.last.to_le_bytes()[..number.len()]);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

/// Pauses `guest` again and again. `check` is given what its ports and memory have last given, and the paused guest.
fn pause_often(guest: &'static Code, check: fn(u32, u32, &Rig)) {
    let (ports, memory) = (Arc::<Mutex<Numbers>>::default(), Arc::<Mutex<Numbers>>::default());
    let last = || (ports.lock().unwrap().last, memory.lock().unwrap().last);
    let rig = Rig::run(guest, ports.clone(), memory.clone());
    for _ in 0..TIMES {
        let before = last();
        until("an access", || last() != before);
        let paused = rig.pause();
        let (port, memory) = last();
        check(port, memory, &rig);
        drop(paused);
        rig.assert_running();
    }
}

guest!(
    PORT_TO_MEMORY,
    "cld
     mov dx, 0xc00
     2: mov edi, 0x200000
     insd
     jmp 2b"
);
guest!(
    DEVICE_TO_MEMORY,
    "cld
     2: mov edi, 0x200000
     mov esi, 0x10000000
     movsd
     jmp 2b"
);
guest!(
    PAGES_TO_MEMORY,
    // Eight bytes over a page's end: one access, and two exits.
    "cld
     2: mov edi, 0x200000
     mov esi, 0x10000ffc
     movsq
     jmp 2b"
);

#[test]
fn a_pause_completes_the_access_that_is_under_way() {
    needs!(kvm());
    guarded(|| {
        pause_often(&PORT_TO_MEMORY, |port, _, rig| assert_eq!(rig.memory(RESULTS), port.to_le_bytes()));
        pause_often(&DEVICE_TO_MEMORY, |_, memory, rig| {
            assert_eq!(rig.memory(RESULTS), memory.to_le_bytes())
        });
        pause_often(&PAGES_TO_MEMORY, |_, memory, rig| {
            assert_eq!(rig.memory(RESULTS), (memory - 1).to_le_bytes());
            assert_eq!(rig.memory(RESULTS + 4), memory.to_le_bytes());
        });
    });
}

const ROW: u32 = 256;

guest!(
    ROWS_FROM_DEVICE,
    "cld
     2: mov edi, 0x200000
     mov esi, 0x10000000
     mov ecx, 256
     rep movsd
     jmp 2b"
);
guest!(
    ROWS_FROM_PORT,
    "cld
     mov dx, 0xc00
     2: mov edi, 0x200000
     mov ecx, 256
     rep insd
     jmp 2b"
);

/// Whether the row holds the last numbers up to `last`, each at its place.
fn assert_row(last: u32, rig: &Rig) {
    let row = rig.memory::<{ ROW as usize * 4 }>(RESULTS);
    for (place, number) in (0..).zip(row.as_chunks().0) {
        // The largest number up to `last` that goes to this place; 0 if there was none yet.
        let expected = (last + ROW - 1 - place) / ROW;
        let expected = if expected == 0 { 0 } else { (expected - 1) * ROW + place + 1 };
        assert_eq!(u32::from_le_bytes(*number), expected, "place {place}, last {last}");
    }
}

#[test]
fn a_pause_in_the_middle_of_a_string_loses_nothing() {
    needs!(kvm());
    guarded(|| {
        pause_often(&ROWS_FROM_DEVICE, |_, memory, rig| assert_row(memory, rig));
        pause_often(&ROWS_FROM_PORT, |port, _, rig| assert_row(port, rig));
    });
}

guest!(
    WRITES,
    "mov edi, 0x200000
     mov dx, 0xc00
     mov ebx, 0x10000ffc
     2: mov rax, [rdi]
     inc rax
     out dx, eax
     mov [rbx], rax
     mov [rdi], rax
     jmp 2b"
);

#[test]
fn a_pause_neither_loses_nor_repeats_a_write() {
    needs!(kvm());
    guarded(|| {
        let (ports, memory) = (Arc::<Mutex<Recorder>>::default(), Arc::<Mutex<Recorder>>::default());
        let rig = Rig::run(&WRITES, ports.clone(), memory.clone());
        let count = |device: &Mutex<Recorder>| device.lock().unwrap().accesses.len();
        for _ in 0..TIMES {
            let before = count(&memory);
            until("a write", || count(&memory) != before);
            drop(rig.pause());
        }
        let _paused = rig.pause();
        let low_halves = |device: &Mutex<Recorder>, size| {
            let written = join(&device.lock().unwrap().accesses);
            assert_eq!(written.len() % size, 0, "half a write");
            written.chunks(size).map(|it| u16::from_le_bytes([it[0], it[1]])).collect::<Vec<_>>()
        };
        for (device, size) in [(&ports, 4), (&memory, 8)] {
            let written = low_halves(device, size);
            let expected: Vec<u16> = (1..=written.len()).map(|number| number as u16).collect();
            assert!(written == expected, "writes of {size} bytes are lost or repeated");
        }
    });
}
