//! A virtio device with a driver of a few instructions: kicks and interrupts, by exits and without (virtio 1.2 §2.7).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::process::Kite;
use crate::support::kvm;

/// A guest that asks the entropy device so many times, each time sleeping until its interrupt.
macro_rules! asks_for_entropy {
    ($name:ident, $times:literal) => {
        guest!(
            pub $name,
            "mov ecx, 0x240",
            interrupt_gate!(),
            "mov al, 0xff",
            set_up_pics!(),
            map_apics!(),
            find_device!(4),
            "lea ecx, [rdi * 2 + 0x11]
             mov esi, 0xfec00000
             mov [rsi], ecx
             mov dword ptr [rsi + 0x10], 0
             dec ecx
             mov [rsi], ecx
             mov dword ptr [rsi + 0x10], 0x24
             mov esi, 0xfee00000
             mov dword ptr [rsi + 0xf0], 0x1ff",
            "mov dword ptr [rbx + 0x70], 0",
            take_over!(2),
            "cmp dword ptr [rbx + 0x70], 0xf
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
             jz 8f",
            concat!("cmp ebp, ", $times),
            "jb 3b",
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
    };
}
asks_for_entropy!(ASKS_FOR_ENTROPY, "1000");
asks_for_entropy!(ASKS_FOR_ENTROPY_FOR_EVER, "0xffffffff");

guest!(
    // Fifty times has the disk read 8 MiB in eight requests, and resets it when the first is done.
    RESETS_A_BUSY_DISK,
    map_apics!(),
    find_device!(2),
    // Three descriptors a request: its header (virtio 1.2 §5.2.6), a MiB of data, and its status.
    "xor ecx, ecx
     mov edi, 0x220000
     mov esi, 0x224000
     mov ebp, 0x1000000
     3: mov [rdi], rsi
     mov dword ptr [rdi + 8], 16
     lea eax, [rcx + rcx * 2]
     mov [rcx * 2 + 0x221004], ax
     inc eax
     shl eax, 16
     or eax, 1
     mov [rdi + 12], eax
     mov [rdi + 16], rbp
     mov dword ptr [rdi + 24], 0x100000
     add eax, 0x10002
     mov [rdi + 28], eax
     lea edx, [rcx + 0x225000]
     mov [rdi + 32], rdx
     mov dword ptr [rdi + 40], 1
     mov dword ptr [rdi + 44], 2
     mov qword ptr [rsi], 0
     mov eax, ecx
     shl eax, 11
     mov [rsi + 8], rax
     add edi, 48
     add esi, 16
     add ebp, 0x100000
     inc ecx
     cmp ecx, 8
     jb 3b
     mov ecx, 50",
    "4:",
    take_over!(32),
    "mov esi, 0x221000
     mov dword ptr [rsi], 0x80000
     mov esi, 0x222000
     mov dword ptr [rsi], 0
     mov dword ptr [rbx + 0x50], 0
     5: pause
     cmp word ptr [rsi + 2], 0
     je 5b
     mov dword ptr [rbx + 0x70], 0
     cmp dword ptr [rbx + 0x70], 0
     jne 8f
     dec ecx
     jnz 4b",
    say!("'Y'"),
    power_off!(),
    "8:",
    say!("'N'"),
    power_off!(),
);

#[test]
fn a_disk_that_is_reset_while_it_reads_starts_again() {
    needs!(kvm());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![1; 8 << 20]).unwrap();
    file.as_file().sync_all().unwrap();
    // A request has to take long enough to be met in flight. Around the page cache it mostly does, but not every file
    // system can do that; a block device that is slow is better still.
    let slow = std::env::var_os("SLOW_DISK");
    let path = slow.as_ref().map_or(file.path(), Path::new);
    let direct = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(path).is_ok();
    let option = format!("path={}{}", path.display(), if direct { ",direct" } else { "" });
    Kite::run(&RESETS_A_BUSY_DISK, &["--disk", &option]).end().assert(0, "Y", "");
}

#[test]
fn a_driver_sleeps_until_its_device_has_answered() {
    needs!(kvm());
    Kite::run(&ASKS_FOR_ENTROPY, &[]).end().assert(0, "Y", "");
}

#[test]
fn without_acpi_and_without_the_device_there_is_none() {
    needs!(kvm());
    for option in ["--no-acpi", "--no-rng"] {
        Kite::run(&ASKS_FOR_ENTROPY, &[option]).end().assert(0, "N", "");
    }
}
