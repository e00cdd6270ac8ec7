//! Interrupts that wake a halted guest: the serial port through the I/O APIC and through the PIC, and the timer.

use crate::process::Kite;
use crate::support::kvm;

/// Halts until an interrupt, which prints what came in until there is no more, and `.` ends it.
macro_rules! echo_on_interrupt {
    ($end_of_interrupt:literal) => {
        concat!(
            "mov dx, 0x3f9
             mov al, 1
             out dx, al
             mov dx, 0x3fc
             mov al, 8
             out dx, al
             mov dx, 0x3f8
             mov al, '>'
             out dx, al
             4: sti
             hlt
             jmp 4b
             5: mov esp, 0x210000
             mov dx, 0x3fa
             in al, dx
             6: mov dx, 0x3fd
             in al, dx
             test al, 1
             jz 7f
             mov dx, 0x3f8
             in al, dx
             out dx, al
             cmp al, '.'
             jne 6b
             ",
            power_off!(),
            "
             7: ",
            $end_of_interrupt,
            "
             jmp 4b"
        )
    };
}

guest!(
    ECHO_BY_IO_APIC,
    "mov ecx, 0x240",
    interrupt_gate!(),
    "mov al, 0xff",
    set_up_pics!(),
    map_apics!(),
    // Pin 4: vector 0x24, edge, to APIC 0.
    "mov ebx, 0xfec00000
     mov dword ptr [rbx], 0x19
     mov dword ptr [rbx + 0x10], 0
     mov dword ptr [rbx], 0x18
     mov dword ptr [rbx + 0x10], 0x24
     mov ebx, 0xfee00000
     mov dword ptr [rbx + 0xf0], 0x1ff",
    echo_on_interrupt!("mov dword ptr [rbx + 0xb0], 0")
);

guest!(
    ECHO_BY_PIC,
    "mov ecx, 0x240",
    interrupt_gate!(),
    "mov al, 0xef",
    set_up_pics!(),
    echo_on_interrupt!("mov al, 0x20\n out 0x20, al")
);

#[test]
fn input_wakes_a_halted_guest_through_either_interrupt_controller() {
    needs!(kvm());
    for guest in [&ECHO_BY_IO_APIC, &ECHO_BY_PIC] {
        let mut kite = Kite::typed_to(guest, &[]);
        kite.expect(b">");
        kite.send(b"a");
        kite.expect(b">a");
        kite.send(b"bc");
        kite.expect(b">abc");
        // More than a FIFO.
        let more = [b'd'; 500];
        kite.send(&more);
        kite.expect(&[b">abc", &more[..]].concat());
        kite.send(b".");
        kite.end().assert(0, [b">abc", &more[..], b"."].concat(), "");
    }
}

guest!(
    TICKS,
    "mov ecx, 0x200",
    interrupt_gate!(),
    "mov al, 0xfe",
    set_up_pics!(),
    // Channel 0, rate generator, 1,193 of its 1,193,182 Hz: a thousand times a second.
    "mov al, 0x34
     out 0x43, al
     mov al, 0xa9
     out 0x40, al
     mov al, 0x04
     out 0x40, al
     mov ecx, 5
     4: sti
     hlt
     jmp 4b
     5: mov esp, 0x210000
     mov dx, 0x3f8
     mov al, 't'
     out dx, al
     mov al, 0x20
     out 0x20, al
     dec ecx
     jnz 4b",
    power_off!()
);

#[test]
fn the_interval_timer_wakes_a_halted_guest_again_and_again() {
    needs!(kvm());
    Kite::run(&TICKS, &[]).end().assert(0, "ttttt", "");
}

guest!(
    COUNT_DOWN,
    // As Linux measures the TSC: gate of channel 2 on, speaker off, one-shot, and a wait for its output.
    "in al, 0x61
     and al, 0xfd
     or al, 1
     out 0x61, al
     mov al, 0xb0
     out 0x43, al
     mov al, 0xa9
     out 0x42, al
     mov al, 0x04
     out 0x42, al
     mov ecx, 10000000
     2: in al, 0x61
     test al, 0x20
     jnz 3f
     loop 2b
     ud2
     3:",
    say!("'c'"),
    power_off!()
);

#[test]
fn the_interval_timers_second_channel_counts_down_once() {
    needs!(kvm());
    Kite::run(&COUNT_DOWN, &[]).end().assert(0, "c", "");
}
