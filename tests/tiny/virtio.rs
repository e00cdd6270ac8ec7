//! A virtio device with a driver of a few instructions: kicks and interrupts, by exits and without.
//!
//! Virtio 1.2 §4.2.3 (set-up over MMIO), §2.7 (the split ring).

use crate::guest::no_kvm;
use crate::process::Kite;

guest!(
    // Asks the entropy device a thousand times, each time sleeping until its interrupt.
    ASKS_FOR_ENTROPY,
    "mov ecx, 0x240",
    interrupt_gate!(),
    "mov al, 0xff",
    set_up_pics!(),
    map_apics!(),
    "mov ebx, 0x201400
     mov dword ptr [rbx], 0xd0000093
     mov ebx, 0xd0000000
     mov edi, 5
     1: cmp dword ptr [rbx + 0x08], 4
     je 2f
     add ebx, 0x1000
     inc edi
     cmp edi, 24
     jb 1b
     jmp 8f
     2: lea ecx, [rdi * 2 + 0x11]
     mov esi, 0xfec00000
     mov [rsi], ecx
     mov dword ptr [rsi + 0x10], 0
     dec ecx
     mov [rsi], ecx
     mov dword ptr [rsi + 0x10], 0x24
     mov esi, 0xfee00000
     mov dword ptr [rsi + 0xf0], 0x1ff",
    // Status up to FEATURES_OK with VIRTIO_F_VERSION_1 alone, then a queue of two entries.
    "mov dword ptr [rbx + 0x70], 0
     mov dword ptr [rbx + 0x70], 1
     mov dword ptr [rbx + 0x70], 3
     mov dword ptr [rbx + 0x24], 1
     mov dword ptr [rbx + 0x20], 1
     mov dword ptr [rbx + 0x70], 0xb
     mov dword ptr [rbx + 0x30], 0
     mov dword ptr [rbx + 0x38], 2
     mov dword ptr [rbx + 0x80], 0x220000
     mov dword ptr [rbx + 0x90], 0x221000
     mov dword ptr [rbx + 0xa0], 0x222000
     mov dword ptr [rbx + 0x44], 1
     mov dword ptr [rbx + 0x70], 0xf
     cmp dword ptr [rbx + 0x70], 0xf
     jne 8f
     mov esi, 0x220000
     mov dword ptr [rsi], 0x223000
     mov dword ptr [rsi + 8], 64
     mov dword ptr [rsi + 12], 2
     xor ebp, ebp
     3: inc ebp
     mov esi, 0x223000
     mov qword ptr [rsi], 0
     mov qword ptr [rsi + 56], 0
     mov esi, 0x221000
     mov [rsi + 2], bp
     mov dword ptr [rbx + 0x50], 0
     4: sti
     hlt
     jmp 4b
     5: mov esp, 0x210000
     mov eax, [rbx + 0x60]
     mov [rbx + 0x64], eax
     mov esi, 0xfee00000
     mov dword ptr [rsi + 0xb0], 0
     mov esi, 0x222000
     cmp [rsi + 2], bp
     jne 4b
     mov esi, 0x223000
     mov rax, [rsi]
     or rax, [rsi + 56]
     jz 8f
     cmp ebp, 1000
     jb 3b",
    // A reset takes back what the driver was told.
    "mov dword ptr [rbx + 0x70], 0
     mov eax, [rbx + 0x60]
     or eax, [rbx + 0x70]
     jnz 8f",
    say!("'Y'"),
    power_off!(),
    "8:",
    say!("'N'"),
    power_off!(),
);

#[test]
fn a_driver_sleeps_until_its_device_has_answered() {
    if no_kvm("a_driver_sleeps_until_its_device_has_answered") {
        return;
    }
    Kite::run(&ASKS_FOR_ENTROPY, &[]).end().assert(0, "Y", "");
}

#[test]
fn without_acpi_and_without_the_device_there_is_none() {
    if no_kvm("without_acpi_and_without_the_device_there_is_none") {
        return;
    }
    for option in ["--no-acpi", "--no-rng"] {
        Kite::run(&ASKS_FOR_ENTROPY, &[option]).end().assert(0, "N", "");
    }
}
