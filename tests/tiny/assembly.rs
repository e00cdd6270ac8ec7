//! Assembly that several guests have: interrupts, and a virtio driver's first steps (virtio 1.2 §4.2.3).

/// Sets the vector in RCX, times 16, to the label `5`, in a table at 0x202000, and gives the guest a stack.
macro_rules! interrupt_gate {
    () => {
        "mov esp, 0x210000
         lea rax, [rip + 5f]
         add ecx, 0x202000
         mov [rcx], ax
         mov word ptr [rcx + 2], 0x10
         mov word ptr [rcx + 4], 0x8e00
         shr eax, 16
         mov [rcx + 6], eax
         mov dword ptr [rcx + 12], 0
         mov ebx, 0x203000
         mov word ptr [rbx], 0xfff
         mov qword ptr [rbx + 2], 0x202000
         lidt [rbx]"
    };
}

/// Maps the APICs, in the fourth GiB, by a page directory at 0x201000.
macro_rules! map_apics {
    () => {
        "mov ebx, 0xa018
         mov dword ptr [rbx], 0x201003
         mov ebx, 0x201fb0
         mov dword ptr [rbx], 0xfec00093
         mov dword ptr [rbx + 8], 0xfee00093"
    };
}

/// Sets the PICs to vectors 0x20 and up, with the interrupts masked that are set in AL.
macro_rules! set_up_pics {
    () => {
        "mov ah, al
         mov al, 0x11
         out 0x20, al
         mov al, 0x20
         out 0x21, al
         mov al, 4
         out 0x21, al
         mov al, 1
         out 0x21, al
         mov al, ah
         out 0x21, al
         mov al, 0xff
         out 0xa1, al"
    };
}

/// Finds the virtio device of this kind, after `map_apics!`: RBX is where its registers are, EDI its line. Without one
/// the guest goes on at the label `8`.
macro_rules! find_device {
    ($kind:literal) => {
        concat!(
            "mov ebx, 0x201400
             mov dword ptr [rbx], 0xd0000093
             mov ebx, 0xd0000000
             mov edi, 5
             1: cmp dword ptr [rbx + 0x08], ",
            $kind,
            "
             je 2f
             add ebx, 0x1000
             inc edi
             cmp edi, 24
             jb 1b
             jmp 8f
             2:"
        )
    };
}

/// Takes over the virtio device at RBX: status up to FEATURES_OK with VIRTIO_F_VERSION_1 alone, a queue of so many entries, and
/// DRIVER_OK.
macro_rules! take_over {
    ($entries:literal) => {
        concat!(
            "mov dword ptr [rbx + 0x70], 1
             mov dword ptr [rbx + 0x70], 3
             mov dword ptr [rbx + 0x24], 1
             mov dword ptr [rbx + 0x20], 1
             mov dword ptr [rbx + 0x70], 0xb
             mov dword ptr [rbx + 0x30], 0
             mov dword ptr [rbx + 0x38], ",
            $entries,
            "
             mov dword ptr [rbx + 0x80], 0x220000
             mov dword ptr [rbx + 0x90], 0x221000
             mov dword ptr [rbx + 0xa0], 0x222000
             mov dword ptr [rbx + 0x44], 1
             mov dword ptr [rbx + 0x70], 0xf"
        )
    };
}

/// Reads the first byte of an item of fw_cfg's into AL.
macro_rules! read_fw_cfg {
    ($item:literal) => {
        concat!("mov dx, 0x510\n mov ax, ", $item, "\n out dx, ax\n mov dx, 0x511\n in al, dx")
    };
}
