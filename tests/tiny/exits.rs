//! Port and memory exits: every width and direction, strings, and what nobody answers.

use crate::process::Kite;
use crate::rig::Access::{self, Read, Write};
use crate::rig::record;
use crate::support::guest::{NOWHERE, RESULTS};
use crate::support::{guarded, kvm};

/// What the accesses were about, in a row, and how many bytes of it there are.
pub fn join(accesses: &[Access]) -> Vec<u8> {
    accesses.iter().flat_map(|(Read(_, data) | Write(_, data))| data.clone()).collect()
}

/// What the recorder gives first.
fn given<const LEN: usize>() -> [u8; LEN] {
    std::array::from_fn(|index| index as u8 + 1)
}

guest!(
    PORT_READS,
    "mov edi, 0x200000
     cld
     mov dx, 0xc01
     mov rax, -1
     in al, dx
     stosq
     mov rax, -1
     in ax, dx
     stosq
     mov rax, -1
     in eax, dx
     stosq
     mov rax, -1
     in al, 0xe2
     stosq
     mov rax, -1
     in ax, 0xe3
     stosq
     mov rax, -1
     in eax, 0xe4
     stosq",
    power_off!()
);

#[test]
fn port_reads_of_every_width_bring_the_devices_bytes_and_no_others() {
    needs!(kvm());
    guarded(|| {
        let (ports, memory, rig) = record(&PORT_READS);
        let expected = [
            Read(1, vec![1]),
            Read(1, vec![2, 3]),
            Read(1, vec![4, 5, 6, 7]),
            Read(2, vec![8]),
            Read(3, vec![9, 10]),
            Read(4, vec![11, 12, 13, 14]),
        ];
        assert_eq!(ports, expected);
        assert_eq!(memory, []);
        let registers = [
            [1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [2, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [4, 5, 6, 7, 0, 0, 0, 0],
            [8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [9, 10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [11, 12, 13, 14, 0, 0, 0, 0],
        ];
        assert_eq!(rig.memory::<48>(RESULTS), registers.as_flattened());
    });
}

guest!(
    PORT_WRITES,
    "mov rax, 0x1817161514131211
     mov dx, 0xc0f
     out dx, al
     out dx, ax
     out dx, eax
     out 0xe0, al
     out 0xe1, ax
     out 0xe2, eax",
    power_off!()
);

#[test]
fn port_writes_of_every_width_bring_the_guests_bytes_and_no_others() {
    needs!(kvm());
    guarded(|| {
        let (ports, memory, _) = record(&PORT_WRITES);
        let expected = [
            Write(15, vec![0x11]),
            Write(15, vec![0x11, 0x12]),
            Write(15, vec![0x11, 0x12, 0x13, 0x14]),
            Write(0, vec![0x11]),
            Write(1, vec![0x11, 0x12]),
            Write(2, vec![0x11, 0x12, 0x13, 0x14]),
        ];
        assert_eq!(ports, expected);
        assert_eq!(memory, []);
    });
}

guest!(
    PORT_STRINGS_IN,
    "cld
     mov edi, 0x200000
     mov dx, 0xc00
     insb
     mov ecx, 5
     rep insb
     mov ecx, 3
     rep insw
     mov ecx, 2
     rep insd
     xor ecx, ecx
     rep insb
     mov ecx, 5000
     rep insb
     mov rax, rdi
     stosq",
    power_off!()
);

#[test]
fn string_input_fills_memory_in_order_across_pages() {
    needs!(kvm());
    guarded(|| {
        const LEN: usize = 1 + 5 + 3 * 2 + 2 * 4 + 5000;
        let (ports, _, rig) = record(&PORT_STRINGS_IN);
        assert!(ports.iter().all(|access| matches!(access, Read(0, _))), "{ports:?}");
        let expected: Vec<u8> = (1..=LEN).map(|index| index as u8).collect();
        assert!(join(&ports) == expected, "the device was not read byte after byte");
        assert!(rig.memory::<LEN>(RESULTS)[..] == expected, "memory differs from what the device gave");
        assert_eq!(rig.memory(RESULTS + LEN as u64), (RESULTS + LEN as u64).to_le_bytes());
    });
}

guest!(
    PORT_STRINGS_OUT,
    "cld
     mov edi, 0x200000
     mov ecx, 700
     xor eax, eax
     2: stosb
     inc eax
     loop 2b
     mov esi, 0x200000
     mov dx, 0xc00
     outsb
     mov ecx, 5
     rep outsb
     mov ecx, 3
     rep outsw
     mov ecx, 2
     rep outsd
     xor ecx, ecx
     rep outsd
     mov ecx, 600
     rep outsb
     std
     mov esi, 0x200003
     mov ecx, 4
     rep outsb
     mov edi, 0x200800
     mov [rdi], rsi",
    power_off!()
);

#[test]
fn string_output_empties_memory_in_either_direction() {
    needs!(kvm());
    guarded(|| {
        let (ports, _, rig) = record(&PORT_STRINGS_OUT);
        assert!(ports.iter().all(|access| matches!(access, Write(0, _))), "{ports:?}");
        let expected: Vec<u8> = (0..620).chain([3, 2, 1, 0]).map(|index| index as u8).collect();
        assert_eq!(join(&ports), expected);
        assert_eq!(rig.memory(RESULTS + 0x800), (RESULTS - 1).to_le_bytes());
    });
}

guest!(
    MEMORY_READS,
    "cld
     mov edi, 0x200000
     mov ebx, 0x10000000
     mov rax, -1
     mov al, [rbx + 1]
     stosq
     mov rax, -1
     mov ax, [rbx + 2]
     stosq
     mov rax, -1
     mov eax, [rbx + 4]
     stosq
     mov rax, -1
     mov rax, [rbx + 8]
     stosq
     mov rax, -1
     movzx eax, byte ptr [rbx]
     stosq
     mov rax, -1
     movzx eax, word ptr [rbx]
     stosq
     lea rsi, [rbx + 3]
     movsq",
    power_off!()
);

#[test]
fn memory_reads_of_every_width_bring_the_devices_bytes_and_no_others() {
    needs!(kvm());
    guarded(|| {
        let (ports, memory, rig) = record(&MEMORY_READS);
        let expected = [
            Read(1, vec![1]),
            Read(2, vec![2, 3]),
            Read(4, vec![4, 5, 6, 7]),
            Read(8, vec![8, 9, 10, 11, 12, 13, 14, 15]),
            Read(0, vec![16]),
            Read(0, vec![17, 18]),
            Read(3, vec![19, 20, 21, 22, 23, 24, 25, 26]),
        ];
        assert_eq!(memory, expected);
        assert_eq!(ports, []);
        let registers = [
            [1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [2, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [4, 5, 6, 7, 0, 0, 0, 0],
            [8, 9, 10, 11, 12, 13, 14, 15],
            [16, 0, 0, 0, 0, 0, 0, 0],
            [17, 18, 0, 0, 0, 0, 0, 0],
            [19, 20, 21, 22, 23, 24, 25, 26],
        ];
        assert_eq!(rig.memory::<56>(RESULTS), registers.as_flattened());
    });
}

guest!(
    MEMORY_WRITES,
    "mov ebx, 0x10000000
     mov rax, 0x1817161514131211
     mov [rbx + 1], al
     mov [rbx + 2], ax
     mov [rbx + 4], eax
     mov [rbx + 8], rax
     mov byte ptr [rbx], 0x21
     mov word ptr [rbx], 0x2221
     mov dword ptr [rbx], 0x24232221
     mov qword ptr [rbx], -2
     mov ah, 0x31
     mov [rbx + 7], ah
     lea rdi, [rbx + 9]
     cld
     stosw",
    power_off!()
);

#[test]
fn memory_writes_of_every_width_bring_the_guests_bytes_and_no_others() {
    needs!(kvm());
    guarded(|| {
        let (ports, memory, _) = record(&MEMORY_WRITES);
        let expected = [
            Write(1, vec![0x11]),
            Write(2, vec![0x11, 0x12]),
            Write(4, vec![0x11, 0x12, 0x13, 0x14]),
            Write(8, vec![0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]),
            Write(0, vec![0x21]),
            Write(0, vec![0x21, 0x22]),
            Write(0, vec![0x21, 0x22, 0x23, 0x24]),
            Write(0, vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Write(7, vec![0x31]),
            Write(9, vec![0x11, 0x31]),
        ];
        assert_eq!(memory, expected);
        assert_eq!(ports, []);
    });
}

guest!(
    MEMORY_BOTH,
    "cld
     mov edi, 0x200000
     mov ebx, 0x10000000
     mov eax, 0x44332211
     xchg [rbx], eax
     stosd
     add dword ptr [rbx + 4], 0x10
     mov rax, [rbx + 0xffc]
     stosq
     mov rax, 0x1817161514131211
     mov [rbx + 0xffe], rax",
    power_off!()
);

#[test]
fn an_instruction_of_several_accesses_makes_each_of_them_once() {
    needs!(kvm());
    guarded(|| {
        let (_, memory, rig) = record(&MEMORY_BOTH);
        let expected = [
            Read(0, vec![1, 2, 3, 4]),
            Write(0, vec![0x11, 0x22, 0x33, 0x44]),
            Read(4, vec![5, 6, 7, 8]),
            Write(4, vec![0x15, 6, 7, 8]),
            // An access over a page's end is one for each page.
            Read(0xffc, vec![9, 10, 11, 12]),
            Read(0x1000, vec![13, 14, 15, 16]),
            Write(0xffe, vec![0x11, 0x12]),
            Write(0x1000, vec![0x13, 0x14, 0x15, 0x16, 0x17, 0x18]),
        ];
        assert_eq!(memory, expected);
        assert_eq!(rig.memory(RESULTS), [1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 15, 16]);
    });
}

guest!(
    MEMORY_STRINGS,
    "cld
     mov edi, 0x200000
     mov esi, 0x10000000
     mov ecx, 3
     rep movsb
     mov ecx, 2
     rep movsd
     mov esi, 0x200000
     mov edi, 0x10000010
     mov ecx, 3
     rep movsw
     mov ecx, 2
     mov eax, 0x5a
     rep stosb",
    power_off!()
);

#[test]
fn strings_go_to_and_from_a_devices_memory_element_by_element() {
    needs!(kvm());
    guarded(|| {
        let (_, memory, rig) = record(&MEMORY_STRINGS);
        let expected = [
            Read(0, vec![1]),
            Read(1, vec![2]),
            Read(2, vec![3]),
            Read(3, vec![4, 5, 6, 7]),
            Read(7, vec![8, 9, 10, 11]),
            Write(16, vec![1, 2]),
            Write(18, vec![3, 4]),
            Write(20, vec![5, 6]),
            Write(22, vec![0x5a]),
            Write(23, vec![0x5a]),
        ];
        assert_eq!(memory, expected);
        assert_eq!(rig.memory(RESULTS), given::<11>());
    });
}

guest!(
    NOBODY,
    "cld
     mov edi, 0x200000
     mov ebx, 0x30000000
     mov edx, 0x1234
     mov ebp, 2
     2: xor eax, eax
     in al, dx
     stosb
     xor eax, eax
     in ax, dx
     stosw
     xor eax, eax
     in eax, dx
     stosd
     xor eax, eax
     mov al, [rbx]
     stosb
     xor eax, eax
     mov ax, [rbx]
     stosw
     xor eax, eax
     mov eax, [rbx]
     stosd
     xor eax, eax
     mov rax, [rbx]
     stosq
     mov ecx, 5
     rep insw
     xor eax, eax
     out dx, al
     out dx, ax
     out dx, eax
     mov [rbx], al
     mov [rbx], ax
     mov [rbx], eax
     mov [rbx], rax
     lock add dword ptr [rbx], 1
     dec ebp
     jnz 2b",
    print_results!(),
    power_off!()
);

#[test]
fn what_nobody_answers_reads_as_ones_and_loses_writes() {
    needs!(kvm());
    assert_eq!(NOWHERE, 0x3000_0000);
    Kite::run(&NOBODY, &[]).end().assert(0, [0xff; 2 * 32], "");
}

guest!(
    CMOS_RAM,
    "cld
     mov edi, 0x200000
     mov al, 0x40
     2: out 0x70, al
     mov ah, al
     not al
     out 0x71, al
     mov al, ah
     inc al
     cmp al, 0x80
     jne 2b
     mov al, 0x40
     3: out 0x70, al
     mov ah, al
     in al, 0x71
     stosb
     mov al, ah
     inc al
     cmp al, 0x80
     jne 3b",
    print_results!(),
    power_off!()
);

#[test]
fn cmos_ram_keeps_what_is_written() {
    needs!(kvm());
    let expected: Vec<u8> = (0x40..0x80u8).map(|register| !register).collect();
    Kite::run(&CMOS_RAM, &[]).end().assert(0, expected, "");
}
