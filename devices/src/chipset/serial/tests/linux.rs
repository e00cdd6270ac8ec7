//! What Linux's `drivers/tty/serial/8250/8250_port.c` does to a port, step by step.

use super::*;

fn clear_fifos(uart: &mut Serial) {
    for value in [0x01, 0x07, 0x00] {
        set(uart, FCR, value);
    }
}

/// Linux's `size_fifo`: how many of 256 bytes come back in loopback.
fn size_fifo(uart: &mut Serial) -> usize {
    let old_lcr = get(uart, LCR);
    set(uart, LCR, 0);
    let old_fcr = get(uart, IIR);
    let old_mcr = get(uart, MCR);
    set(uart, FCR, 0x07);
    set(uart, MCR, 0x10);
    set(uart, LCR, 0x80);
    let old_divisor = divisor(uart).to_le_bytes();
    set(uart, 0, 1);
    set(uart, 1, 0);
    set(uart, LCR, 0x03);
    (0..=255).for_each(|byte| set(uart, DATA, byte));
    let mut count = 0;
    while get(uart, LSR) & 0x01 != 0 && count < 256 {
        assert_eq!(usize::from(get(uart, DATA)), count);
        count += 1;
    }
    set(uart, FCR, old_fcr);
    set(uart, MCR, old_mcr);
    set(uart, LCR, 0x80);
    set(uart, 0, old_divisor[0]);
    set(uart, 1, old_divisor[1]);
    set(uart, LCR, old_lcr);
    count
}

/// Linux's `autoconfig` up to the kind of chip that IIR tells.
fn autoconfig(uart: &mut Serial) {
    let ier = get(uart, IER);
    set(uart, IER, 0);
    assert_eq!(get(uart, IER) & 0x0f, 0);
    set(uart, IER, 0x0f);
    assert_eq!(get(uart, IER) & 0x0f, 0x0f);
    set(uart, IER, ier);
    let (mcr, lcr) = (get(uart, MCR), get(uart, LCR));
    set(uart, MCR, 0x1a);
    assert_eq!(get(uart, MSR) & 0xf0, 0x90);
    set(uart, MCR, mcr);
    set(uart, LCR, 0xbf);
    set(uart, 2, 0);
    set(uart, LCR, 0);
    set(uart, FCR, 0x01);
    assert_eq!(get(uart, IIR) >> 6, 3);
    autoconfig_16550a(uart);
    set(uart, LCR, lcr);
    set(uart, MCR, mcr);
    clear_fifos(uart);
    get(uart, DATA);
    set(uart, IER, 0);
}

/// Linux's `autoconfig_16550a` with `CONFIG_SERIAL_8250_16550A_VARIANTS`.
fn autoconfig_16550a(uart: &mut Serial) {
    set(uart, LCR, 0x80);
    assert_ne!(get(uart, 2), 0, "no EFR of a 16650");
    set(uart, LCR, 0xbf);
    assert_ne!(get(uart, 2), 0, "no EFR of a 16650V2");

    set(uart, LCR, 0);
    let mcr = get(uart, MCR);
    set(uart, LCR, 0xe0);
    assert_eq!((get(uart, 2) ^ mcr) & 0x10, 0);
    set(uart, LCR, 0);
    set(uart, MCR, mcr ^ 0x10);
    set(uart, LCR, 0xe0);
    assert_eq!((get(uart, 2) ^ mcr) & 0x10, 0, "no EXCR1 of a National SuperIO");
    set(uart, LCR, 0);
    set(uart, MCR, mcr);

    set(uart, FCR, 0x21);
    assert_eq!(get(uart, IIR) >> 5, 6);
    set(uart, FCR, 0x01);
    set(uart, LCR, 0x80);
    set(uart, FCR, 0x21);
    assert_eq!(get(uart, IIR) >> 5, 6, "no 64-byte FIFO of a 16750");
    set(uart, FCR, 0x01);
    set(uart, LCR, 0);

    let ier = get(uart, IER);
    set(uart, IER, ier & !0x40);
    set(uart, IER, ier | 0x40);
    assert_eq!(get(uart, IER) & 0x40, 0, "no UUE of an XScale");
    set(uart, IER, ier);
    assert_eq!(size_fifo(uart), 16);
}

/// Linux's `serial8250_do_startup` and `serial8250_do_set_termios`; `between` runs after every access.
fn startup(uart: &mut Serial, mut between: impl FnMut(&mut Serial)) {
    let mut step = |uart: &mut Serial, offset: u64, value: Option<u8>| -> u8 {
        let read = match value {
            Some(value) => {
                set(uart, offset, value);
                0
            }
            None => get(uart, offset),
        };
        between(uart);
        read
    };
    for value in [0x01, 0x07, 0x00] {
        step(uart, FCR, Some(value));
    }
    for offset in [LSR, DATA, IIR, MSR] {
        step(uart, offset, None);
    }
    assert_ne!(step(uart, LSR, None), 0xff);
    assert_eq!(step(uart, LSR, None) & 0x20, 0x20);
    for _ in 0..2 {
        step(uart, IER, Some(0x02));
        assert_eq!(step(uart, IIR, None) & 0x0f, 0x02, "no UART_BUG_THRE");
        step(uart, IER, Some(0x00));
    }
    step(uart, LCR, Some(0x03));
    step(uart, MCR, Some(0x08));
    step(uart, IER, Some(0x02));
    let (lsr, iir) = (step(uart, LSR, None), step(uart, IIR, None));
    assert!(lsr & 0x40 == 0 || iir & 0x01 == 0, "no UART_BUG_TXEN");
    step(uart, IER, Some(0x00));
    for offset in [LSR, DATA, IIR, MSR] {
        step(uart, offset, None);
    }
    step(uart, IER, Some(0x05));
    for (offset, value) in [(LCR, 0x93), (0, 1), (1, 0), (LCR, 0x13), (FCR, 0x01), (FCR, 0x81), (MCR, 0x0b)] {
        step(uart, offset, Some(value));
    }
}

#[test]
fn linux_detects_a_16550a_and_no_variant() {
    let (mut uart, _) = uart();
    autoconfig(&mut uart);
    assert_eq!(output(&mut uart), b"", "the probe sends nothing");
    startup(&mut uart, |_| {});
}

#[test]
fn input_from_before_the_driver_survives_its_start() {
    let (mut uart, _) = uart();
    assert_eq!(uart.receive(b"hello"), 0);
    autoconfig(&mut uart);
    let mut input = b"hello world\n".to_vec();
    startup(&mut uart, |uart| {
        let taken = uart.receive(&input);
        input.drain(..taken);
    });
    let mut seen = Vec::new();
    while get(&mut uart, LSR) & 0x01 != 0 {
        seen.push(get(&mut uart, DATA));
        let taken = uart.receive(&input);
        input.drain(..taken);
    }
    assert_eq!(seen, b"hello world\n");
}

#[test]
fn linux_sees_no_transmit_bug_while_the_host_is_stuck() {
    let (mut uart, _) = uart();
    uart.write(DATA, &[b'x'; OUTPUT_LIMIT]);
    set(&mut uart, IER, 0x02);
    assert_eq!((get(&mut uart, LSR) & 0x40, get(&mut uart, IIR)), (0, 0x01));
}
