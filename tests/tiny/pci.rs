//! A virtio device on the PCI bus with a driver of a few instructions: what it finds in configuration space costs no
//! exit, and its interrupts are messages (virtio 1.2 §4.1).

use serde_json::Value;

use crate::process::Kite;
use crate::support::kvm;

/// Where configuration space begins, and where it ends.
const CONFIG: std::ops::Range<u64> = 0xd800_0000..0xd810_0000;
/// Where the guest moves the device's memory.
const MOVED: u64 = 0xd920_0000;
/// Where in it the queues are kicked.
const NOTIFY: u64 = 0x3000;

/// A guest that finds the entropy device, sizes its memory, moves it, and asks the device so many times, each time
/// sleeping until its message.
macro_rules! asks_over_pci {
    ($name:ident, $times:literal) => {
        guest!(
            pub $name,
            "mov ecx, 0x410",
            interrupt_gate!(),
            "mov al, 0xff",
            set_up_pics!(),
            map_apics!(),
            "mov esi, 0xfee00000
             mov dword ptr [rsi + 0xf0], 0x1ff
             mov ebx, 0x201600
             mov dword ptr [rbx], 0xd8000093
             mov ebx, 0x201648
             mov dword ptr [rbx], 0xd9200093",
            // The second function of the bridge and the last device are absent.
            "mov edi, 0xd8001000
             cmp dword ptr [rdi], -1
             jne 8f
             mov edi, 0xd80f8000
             cmp dword ptr [rdi + 0xffc], -1
             jne 8f
             mov edi, 0xd8000000
             cmp word ptr [rdi + 10], 0x600
             jne 8f
             1: cmp dword ptr [rdi], 0x10441af4
             je 2f
             add edi, 0x8000
             cmp edi, 0xd8100000
             jb 1b
             jmp 8f",
            // Its size, and another place.
            "2: mov dword ptr [rdi + 0x10], -1
             mov dword ptr [rdi + 0x14], -1
             cmp dword ptr [rdi + 0x10], 0xffff0004
             jne 8f
             cmp dword ptr [rdi + 0x14], -1
             jne 8f
             mov ebx, 0xd9200000
             mov dword ptr [rdi + 0x10], ebx
             mov dword ptr [rdi + 0x14], 0
             mov word ptr [rdi + 4], 6",
            // MSI-X's capability, and the vector of queue 0.
            "movzx ecx, byte ptr [rdi + 0x34]
             3: test ecx, ecx
             jz 8f
             cmp byte ptr [rdi + rcx], 0x11
             je 4f
             movzx ecx, byte ptr [rdi + rcx + 1]
             jmp 3b
             4: mov word ptr [rdi + rcx + 2], 0x8000
             mov esi, 0xd9208010
             mov dword ptr [rsi], 0xfee00000
             mov dword ptr [rsi + 4], 0
             mov dword ptr [rsi + 8], 0x41
             mov dword ptr [rsi + 12], 0",
            // The device's status up to FEATURES_OK with VIRTIO_F_VERSION_1 alone, the queue, and DRIVER_OK.
            "mov byte ptr [rbx + 0x14], 1
             mov byte ptr [rbx + 0x14], 3
             mov dword ptr [rbx + 8], 1
             mov dword ptr [rbx + 12], 1
             mov byte ptr [rbx + 0x14], 0xb
             mov word ptr [rbx + 0x16], 0
             mov word ptr [rbx + 0x18], 2
             mov word ptr [rbx + 0x1a], 1
             mov dword ptr [rbx + 0x20], 0x220000
             mov dword ptr [rbx + 0x28], 0x221000
             mov dword ptr [rbx + 0x30], 0x222000
             mov word ptr [rbx + 0x1c], 1
             mov byte ptr [rbx + 0x14], 0xf
             cmp byte ptr [rbx + 0x14], 0xf
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
             mov word ptr [rbx + 0x3000], 0
             4: sti
             hlt
             jmp 4b
             5: mov esp, 0x210000
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
            // Where its queue is kicked goes with its memory, and comes back.
            "mov word ptr [rdi + 4], 0
             mov word ptr [rdi + 4], 6",
            // A reset takes back what the driver was told.
            "mov byte ptr [rbx + 0x14], 0
             cmp byte ptr [rbx + 0x14], 0
             jne 8f
             cmp word ptr [rbx + 0x1a], -1
             jne 8f",
            say!("'Y'"),
            power_off!(),
            "8:",
            say!("'N'"),
            power_off!(),
        );
    };
}
asks_over_pci!(ASKS_OVER_PCI, "1000");
asks_over_pci!(ASKS_OVER_PCI_FOR_EVER, "0xffffffff");

#[test]
fn a_driver_on_the_bus_sleeps_until_its_device_has_sent_a_message() {
    needs!(kvm());
    Kite::run(&ASKS_OVER_PCI, &["--transport", "pci"]).end().assert(0, "Y", "");
}

#[test]
fn without_a_bus_and_without_the_device_there_is_none() {
    needs!(kvm());
    for options in [&["--transport", "mmio"][..], &[], &["--transport", "pci", "--no-rng"]] {
        Kite::run(&ASKS_OVER_PCI, options).end().assert(0, "N", "");
    }
}

#[test]
fn neither_a_look_at_the_bus_nor_a_kick_is_an_exit() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stats.json");
    let option = format!("--stats={}", file.display());
    Kite::run(&ASKS_OVER_PCI, &["--transport", "pci", &option]).end().assert(0, "Y", "");
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let count = |places: std::ops::Range<u64>, access: &str| -> u64 {
        let rows = json["accesses"].as_array().unwrap().iter();
        let rows = rows.filter(|row| row["access"] == access && row["space"] == "memory");
        let rows = rows.filter(|row| places.contains(&row["address"].as_u64().unwrap()));
        rows.map(|row| row["count"].as_u64().unwrap()).sum()
    };
    assert_eq!((count(CONFIG, "read"), count(CONFIG, "write")), (0, 8), "{json:#}");
    let kicks = MOVED + NOTIFY..MOVED + NOTIFY + 4;
    // The first ones may come before the device's thread has connected them.
    assert!(count(kicks, "write") < 900, "{json:#}");
    assert_eq!(count(MOVED + 0x1000..MOVED + 0x1001, "read"), 0, "no status is asked for at an interrupt");
}
