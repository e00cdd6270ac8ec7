//! pci-testdev behind configuration mechanism 1, tested from inside.

use crate::multiboot::run;
use crate::support::kvm;

/// Reads the configuration space of the function in EBX, at `$byte`, into EAX.
macro_rules! read_config {
    ($byte:literal) => {
        concat!(
            "mov eax, ",
            $byte,
            "\n or eax, ebx\n mov dx, 0xcf8\n out dx, eax\n mov dx, 0xcfc\n in eax, dx"
        )
    };
}

/// Writes EAX there.
macro_rules! write_config {
    ($byte:literal) => {
        concat!(
            "mov ecx, eax\n mov eax, ",
            $byte,
            "\n or eax, ebx\n mov dx, 0xcf8\n out dx, eax\n mov eax, ecx\n
             mov dx, 0xcfc\n out dx, eax"
        )
    };
}

/// Finds the function; EBX is its address for CONFIG_ADDRESS.
macro_rules! find {
    () => {
        concat!(
            "mov ebx, 0x80000000
             2: ",
            read_config!(0),
            "
             cmp eax, 0x00051b36
             je 3f
             add ebx, 0x100
             cmp ebx, 0x80010000
             jb 2b
             ",
            check!(1, "jb"),
            "
             3:"
        )
    };
}

guest!(
    CONFIGURATION,
    ".code32",
    find!(),
    read_config!(0x10),
    "mov esi, eax
     test eax, 0xfff",
    check!(2, "jz"),
    "test eax, eax",
    check!(3, "jnz"),
    "mov eax, -1",
    write_config!(0x10),
    "in eax, dx
     cmp eax, 0xfffff000",
    check!(4, "je"),
    "mov eax, esi",
    write_config!(0x10),
    "in eax, dx
     cmp eax, esi",
    check!(5, "je"),
    read_config!(0x14),
    "and eax, 0xffff00ff
     cmp eax, 1",
    check!(6, "je"),
    // The byte by the port, and by the address.
    read_config!(0),
    "mov dx, 0xcfe
     in al, dx
     cmp al, 5",
    check!(7, "je"),
    "lea eax, [ebx + 2]
     mov dx, 0xcf8
     out dx, eax
     mov dx, 0xcfc
     in ax, dx
     cmp ax, 5",
    check!(8, "je"),
    "lea eax, [ebx + 3]
     mov dx, 0xcf8
     out dx, eax
     in eax, dx
     lea ecx, [ebx + 3]
     cmp eax, ecx",
    check!(9, "je"),
    "xor eax, eax
     out dx, eax
     mov dx, 0xcfc
     in eax, dx
     cmp eax, -1",
    check!(10, "je"),
    passed!(),
);

#[test]
fn the_function_is_found_and_its_windows_are_assigned() {
    needs!(kvm());
    run(&CONFIGURATION, &["--test-devices"]).assert(1, "", "");
}

guest!(
    MEMORY,
    ".code32",
    find!(),
    read_config!(0x10),
    "mov ebx, eax
     xor edi, edi
     4: mov eax, edi
     mov [ebx], al
     cmp [ebx], al",
    check!(2, "je"),
    "cmp byte ptr [ebx + 1], 1",
    check!(3, "je"),
    "mov esi, [ebx + 4]
     mov al, [ebx + 8]
     mov ecx, 16
     5: mov [ebx + esi], al
     loop 5b
     cmp dword ptr [ebx + 12], 16",
    check!(4, "je"),
    // What does not match is not counted, but by the wildcard.
    "xor al, 1
     mov [ebx + esi], al
     mov ecx, [ebx + 12]
     sub ecx, 16
     xor eax, eax
     cmp edi, 1
     sete al
     cmp ecx, eax",
    check!(5, "je"),
    "inc edi
     cmp edi, 3
     jb 4b
     mov byte ptr [ebx], 3
     cmp byte ptr [ebx + 1], 0",
    check!(6, "je"),
    passed!(),
);

guest!(
    PORTS,
    ".code32",
    find!(),
    read_config!(0x14),
    "mov ebx, eax
     and ebx, 0xfffffffc
     xor edi, edi
     4: mov edx, ebx
     mov eax, edi
     out dx, al
     inc edx
     in al, dx
     cmp al, 1",
    check!(2, "je"),
    "lea edx, [ebx + 4]
     in eax, dx
     lea esi, [ebx + eax]
     lea edx, [ebx + 8]
     in eax, dx
     mov edx, esi
     mov ecx, 16
     5: out dx, al
     loop 5b
     mov ecx, eax
     lea edx, [ebx + 12]
     in eax, dx
     cmp eax, 16",
    check!(3, "je"),
    "mov eax, ecx
     xor al, 1
     mov edx, esi
     out dx, al
     lea edx, [ebx + 12]
     in eax, dx
     sub eax, 16
     xor ecx, ecx
     cmp edi, 1
     sete cl
     cmp ecx, eax",
    check!(4, "je"),
    "inc edi
     cmp edi, 3
     jb 4b",
    passed!(),
);

#[test]
fn writes_are_counted_with_and_without_an_exit() {
    needs!(kvm());
    run(&MEMORY, &["--test-devices"]).assert(1, "", "");
    run(&PORTS, &["--test-devices"]).assert(1, "", "");
}
