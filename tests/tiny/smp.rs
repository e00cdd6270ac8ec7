//! Several vCPUs: started by INIT and SIPI, running at once, and ending together.

use std::process::Stdio;

use boot::testing::Entry;

use crate::process::Kite;
use crate::support::kvm;

/// How often each vCPU prints its letter while the others do.
const TIMES: usize = 500;

/// Copies the application processors' code, at 0x100200, to where SIPI vector 0x10 starts them.
macro_rules! copy_code {
    () => {
        "cld
         mov esi, 0x100200
         mov edi, 0x10000
         mov ecx, 0x100
         rep movsb"
    };
}

/// Switches the local APIC to x2APIC mode, and sends INIT and SIPI to APIC 1.
macro_rules! start_second {
    () => {
        "mov ecx, 0x1b
         rdmsr
         or eax, 0xc00
         wrmsr
         mov ecx, 0x830
         mov edx, 1
         mov eax, 0x4500
         wrmsr
         mov eax, 0x4610
         wrmsr"
    };
}

/// What an application processor runs, in real mode: counts itself at 0x11000, waits for the word at 0x11004, prints,
/// and counts itself at 0x11008.
macro_rules! application_processor {
    ($guest:literal) => {
        concat!(
            ".org .Lstart_",
            $guest,
            " + 0x200
             .code16
             mov ax, 0x1100
             mov ds, ax
             lock inc dword ptr [0]
             2: pause
             cmp byte ptr [4], 0
             je 2b
             mov cx, 500
             mov dx, 0x3f8
             mov al, 'a'
             3: out dx, al
             loop 3b
             lock inc dword ptr [8]
             cli
             4: hlt
             jmp 4b"
        )
    };
}

/// Waits until as many are counted at 0x11000 as EBP says, prints at the same time as they, and waits for their end.
macro_rules! run_with_them {
    () => {
        "mov ebx, 0x11000
         2: pause
         cmp dword ptr [ebx], ebp
         jne 2b
         mov byte ptr [ebx + 4], 1
         mov ecx, 500
         mov dx, 0x3f8
         mov al, 'b'
         3: out dx, al
         loop 3b
         4: pause
         cmp dword ptr [ebx + 8], ebp
         jne 4b"
    };
}

guest!(
    TWO_BY_X2APIC,
    copy_code!(),
    start_second!(),
    "mov ebp, 1",
    run_with_them!(),
    power_off!(),
    application_processor!("TWO_BY_X2APIC")
);

guest!(
    TWO_IN_A_HURRY,
    // What Linux does after a line, from which kite concludes that output can wait in KVM's ring: see `coalesced.rs`.
    "mov dx, 0x3f8
     mov al, 'b'
     out dx, al
     mov dx, 0x3fd
     in al, dx
     mov dx, 0x3f9
     xor al, al
     out dx, al",
    copy_code!(),
    start_second!(),
    "mov ebp, 1",
    run_with_them!(),
    power_off!(),
    application_processor!("TWO_IN_A_HURRY")
);

guest!(
    FOUR_BY_XAPIC,
    ".code32",
    copy_code!(),
    // The local APIC on, then INIT and SIPI to all others.
    "mov ebx, 0xfee00000
     mov dword ptr [ebx + 0xf0], 0x1ff
     mov dword ptr [ebx + 0x300], 0xc4500
     mov dword ptr [ebx + 0x300], 0xc4610
     mov ebp, 3",
    run_with_them!(),
    power_off!(),
    application_processor!("FOUR_BY_XAPIC")
);

#[test]
fn vcpus_started_by_init_and_sipi_run_at_once() {
    needs!(kvm());
    for (guest, entry, cpus) in [(&TWO_BY_X2APIC, Entry::Long, 2), (&FOUR_BY_XAPIC, Entry::Pvh, 4)] {
        let cpus_option = format!("--cpus={cpus}");
        let mut end = Kite::start(guest, entry, &[&cpus_option], Stdio::null(), Stdio::piped()).end();
        end.stdout.sort_unstable();
        end.assert(0, [vec![b'a'; (cpus - 1) * TIMES], vec![b'b'; TIMES]].concat(), "");
    }
}

guest!(
    SECOND_FAULTS,
    copy_code!(),
    start_second!(),
    "2: pause
     jmp 2b
     .org .Lstart_SECOND_FAULTS + 0x200
     .code16
     mov ax, 0x1100
     mov ds, ax
     lidt [0]
     ud2"
);

#[test]
fn output_of_two_vcpus_is_complete_with_writes_coalesced() {
    needs!(kvm());
    let mut end = Kite::run(&TWO_IN_A_HURRY, &["--cpus", "2"]).end();
    end.stdout.sort_unstable();
    end.assert(0, [vec![b'a'; TIMES], vec![b'b'; TIMES + 1]].concat(), "");
}

#[test]
fn a_crash_of_any_vcpu_ends_all() {
    needs!(kvm());
    let end = Kite::run(&SECOND_FAULTS, &["--cpus", "3"]).end();
    // A triple fault; PVM calls it an instruction that it cannot emulate.
    assert!(
        end.stderr.starts_with("kite: the guest crashed: ") && end.stderr.contains("on vCPU 1"),
        "{}",
        end.stderr
    );
    end.assert(255, "", &end.stderr);
}
