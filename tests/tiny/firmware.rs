//! What a PC's firmware leaves to a program that enters real mode, with `--test-devices`.

use crate::multiboot::run;
use crate::support::kvm;

// KVM's unit test `realmode` does this and goes on after it: a line that is raised and lowered, which the second
// interrupt controller masks, then a halt that only the timer ends.
guest!(
    REAL_MODE,
    ".code32
     mov esp, 0x210000
     mov dword ptr [0x2008], 0xffff
     mov dword ptr [0x200c], 0x9b00
     mov dword ptr [0x2010], 0xffff
     mov dword ptr [0x2014], 0x9300
     mov word ptr [0x2020], 0x17
     mov dword ptr [0x2022], 0x2000
     mov word ptr [0x2030], 0x3ff
     mov dword ptr [0x2032], 0
     lgdt [0x2020]
     call 7f
     .code16
     mov ax, 0x10
     mov ds, ax
     mov es, ax
     mov ss, ax
     mov sp, 0x2ff0
     mov eax, cr0
     and al, 0xfe
     mov cr0, eax
     push 0
     call 5f
     xor ax, ax
     mov ds, ax
     mov es, ax
     mov ss, ax
     lidt [0x2030]
     in al, 0x21
     cmp al, 0xfa
     jne 6f
     in al, 0xa1
     cmp al, 0xff
     jne 6f
     mov dword ptr [0x73 * 4], 0x1000
     mov byte ptr [0x1000], 0xcf
     cli
     mov dx, 0x200b
     mov eax, 1
     out dx, eax
     mov eax, 0
     out dx, eax
     sti
     hlt
     cli
     mov cx, 3
     3: sti
     hlt
     cli
     loop 3b
     mov dx, 0xf4
     xor eax, eax
     out dx, eax
     6: mov dx, 0xf4
     mov eax, 0x20
     out dx, eax
     4: hlt
     jmp 4b
     5: retf
     .code32
     7: pop esi
     mov edi, 0x3000
     mov ecx, 0x200
     cld
     rep movsb
     push 8
     push 0x3000
     retf
     .skip 0x200"
);

#[test]
fn a_halt_in_real_mode_is_ended_by_the_firmware_s_timer() {
    needs!(kvm());
    run(&REAL_MODE, &["--test-devices"]).assert(1, "", "");
    run(&REAL_MODE, &["--test-devices", "--no-acpi", "--cpus", "2"]).assert(1, "", "");
}
