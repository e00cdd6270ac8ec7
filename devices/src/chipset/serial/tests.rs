//! The UART register by register, drivers that poll, and a driver and a host that act on wake-ups only.

mod linux;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;
use crate::testing::{Random, storm};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IDLE: u8 = 0x60;

#[derive(Default)]
struct Calls {
    pulses: AtomicU32,
    ready: AtomicU32,
    wanted: AtomicU32,
}

impl Calls {
    fn pulses(&self) -> u32 {
        self.pulses.swap(0, Relaxed)
    }
    fn ready(&self) -> u32 {
        self.ready.swap(0, Relaxed)
    }
    fn wanted(&self) -> u32 {
        self.wanted.swap(0, Relaxed)
    }
}

impl Line for Arc<Calls> {
    fn pulse(&self) {
        self.pulses.fetch_add(1, Relaxed);
    }
}

impl Host for Arc<Calls> {
    fn output_ready(&self) {
        self.ready.fetch_add(1, Relaxed);
    }
    fn input_wanted(&self) {
        self.wanted.fetch_add(1, Relaxed);
    }
}

fn uart() -> (Serial, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    (Serial::new(Box::new(calls.clone()), Box::new(calls.clone())), calls)
}

/// As a Linux driver leaves it: FIFOs on with a trigger of 8, receiver interrupts on.
fn running() -> (Serial, Arc<Calls>) {
    let (mut uart, calls) = uart();
    set(&mut uart, IER, 0x05);
    set(&mut uart, FCR, 0x81);
    (uart, calls)
}

fn get(uart: &mut Serial, offset: u64) -> u8 {
    let mut data = [0];
    uart.read(offset, &mut data);
    data[0]
}

fn set(uart: &mut Serial, offset: u64, value: u8) {
    uart.write(offset, &[value]);
}

fn output(uart: &mut Serial) -> Vec<u8> {
    let mut bytes = Vec::new();
    uart.take_output(&mut bytes);
    bytes
}

fn divisor(uart: &mut Serial) -> u16 {
    u16::from_le_bytes([get(uart, 0), get(uart, 1)])
}

#[test]
fn registers_read_back_what_they_hold() {
    let (mut uart, _) = uart();
    let reset: Vec<u8> = (0..10).map(|offset| get(&mut uart, offset)).collect();
    assert_eq!(reset, [0, 0, 0x01, 0, 0, IDLE, 0xb0, 0, 0xff, 0xff]);
    for value in 0..=255 {
        for (offset, mask) in [(IER, 0x0f), (MCR, 0x1f), (SCR, 0xff)] {
            set(&mut uart, offset, value);
            assert_eq!(get(&mut uart, offset), value & mask);
        }
        set(&mut uart, LSR, value);
        assert_eq!(get(&mut uart, LSR), IDLE);
    }
}

#[test]
fn the_divisor_hides_behind_dlab() {
    let (mut uart, _) = running();
    set(&mut uart, LCR, 0x83);
    assert_eq!(divisor(&mut uart), 12);
    set(&mut uart, 0, 0x34);
    set(&mut uart, 1, 0x12);
    assert_eq!(divisor(&mut uart), 0x1234);
    set(&mut uart, LCR, 0x03);
    assert_eq!((get(&mut uart, 0), get(&mut uart, 1)), (0, 0x05));
    assert_eq!(output(&mut uart), b"");
}

#[test]
fn loopback_wires_the_modem_lines_and_notes_their_changes() {
    let (mut uart, calls) = uart();
    set(&mut uart, IER, 0x08);
    for (mcr, lines) in [(0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1f, 0xf0)] {
        set(&mut uart, MCR, mcr);
        assert_eq!(get(&mut uart, MSR) & 0xf0, lines);
    }
    calls.pulses();
    set(&mut uart, MCR, 0x10);
    assert_eq!((calls.pulses(), get(&mut uart, IIR)), (1, 0x00));
    assert_eq!(get(&mut uart, MSR), 0x0f);
    assert_eq!((get(&mut uart, MSR), get(&mut uart, IIR)), (0, 0x01));
    set(&mut uart, MCR, 0x00);
    assert_eq!(get(&mut uart, MSR), 0xbb);
}

#[test]
fn loopback_returns_bytes_and_marks_an_overrun() {
    let (mut uart, calls) = running();
    set(&mut uart, MCR, 0x10);
    uart.write(DATA, b"0123456789abcdefX");
    assert_eq!(uart.receive(b"outside"), 0);
    assert_eq!((calls.pulses(), get(&mut uart, IIR)), (2, 0xc6));
    assert_eq!((get(&mut uart, LSR), get(&mut uart, LSR)), (IDLE | 0x03, IDLE | 0x01));
    let mut data = [0; 16];
    uart.read(DATA, &mut data);
    assert_eq!(&data, b"0123456789abcdef");
    assert_eq!((output(&mut uart), calls.ready()), (vec![], 0));
    assert_eq!(calls.wanted(), 0);
    set(&mut uart, MCR, 0x00);
    assert_eq!(calls.wanted(), 1);
}

#[test]
fn loopback_without_fifos_keeps_the_latest_byte() {
    let (mut uart, _) = uart();
    set(&mut uart, MCR, 0x10);
    uart.write(DATA, b"ab");
    assert_eq!((get(&mut uart, LSR), get(&mut uart, DATA)), (IDLE | 0x03, b'b'));
}

#[test]
fn output_comes_in_order_and_is_announced_once() {
    let (mut uart, calls) = uart();
    set(&mut uart, DATA, b'a');
    uart.write(DATA, b"bc");
    assert_eq!(calls.ready(), 1);
    let mut bytes = b"> ".to_vec();
    uart.take_output(&mut bytes);
    assert_eq!(bytes, b"> abc");
    set(&mut uart, DATA, b'd');
    assert_eq!((calls.ready(), output(&mut uart)), (1, vec![b'd']));
    assert_eq!((calls.ready(), output(&mut uart)), (0, vec![]));
}

#[test]
fn an_empty_buffer_is_swapped_not_copied() {
    let (mut uart, _) = uart();
    uart.write(DATA, &[b'x'; 1000]);
    let mut bytes = Vec::with_capacity(4096);
    let lent = bytes.as_ptr();
    uart.take_output(&mut bytes);
    assert_eq!(bytes.len(), 1000);
    bytes.clear();
    uart.write(DATA, b"y");
    uart.take_output(&mut bytes);
    assert_eq!((bytes.as_slice(), bytes.as_ptr()), (&b"y"[..], lent));
}

#[test]
fn a_stuck_host_makes_the_transmitter_busy_and_loses_nothing_of_a_patient_driver() {
    let (mut uart, calls) = running();
    let mut sent = 0;
    while get(&mut uart, LSR) & 0x20 != 0 {
        uart.write(DATA, &[(sent / FIFO) as u8; FIFO]);
        sent += FIFO;
    }
    assert_eq!((sent, uart.dropped(), get(&mut uart, LSR)), (OUTPUT_LIMIT, 0, 0));
    uart.write(DATA, b"too much");
    assert_eq!(uart.dropped(), 8);
    let taken = output(&mut uart);
    assert_eq!((taken.len(), taken[OUTPUT_LIMIT - 1]), (OUTPUT_LIMIT, (OUTPUT_LIMIT / FIFO - 1) as u8));
    assert_eq!((get(&mut uart, LSR), calls.pulses()), (IDLE, 0));
}

#[test]
fn the_transmitter_is_idle_only_while_a_whole_fifo_fits() {
    let (mut uart, _) = uart();
    uart.write(DATA, &[0; OUTPUT_LIMIT - FIFO]);
    assert_eq!(get(&mut uart, LSR), IDLE);
    set(&mut uart, DATA, 0);
    assert_eq!(get(&mut uart, LSR), 0);
}

#[test]
fn draining_a_full_buffer_interrupts_a_driver_that_waits() {
    let (mut uart, calls) = running();
    uart.write(DATA, &[0; OUTPUT_LIMIT]);
    set(&mut uart, IER, 0x07);
    assert_eq!((calls.pulses(), get(&mut uart, IIR)), (0, 0xc1));
    output(&mut uart);
    assert_eq!((calls.pulses(), get(&mut uart, IIR)), (1, 0xc2));
    output(&mut uart);
    assert_eq!(calls.pulses(), 0, "it was idle already");
}

#[test]
fn the_thr_interrupt_comes_with_its_enable_and_goes_with_iir() {
    let (mut uart, calls) = uart();
    for _ in 0..2 {
        set(&mut uart, IER, 0x02);
        assert_eq!(calls.pulses(), 1);
        assert_eq!((get(&mut uart, IIR), get(&mut uart, IIR)), (0x02, 0x01));
        set(&mut uart, IER, 0x02);
        assert_eq!((calls.pulses(), get(&mut uart, IIR)), (0, 0x01));
        uart.write(DATA, b"0123456789abcdef");
        assert_eq!(calls.pulses(), 1, "one for a whole FIFO");
        set(&mut uart, IER, 0x00);
        assert_eq!(get(&mut uart, IIR), 0x01);
    }
}

#[test]
fn iir_tells_causes_by_priority_and_clears_only_the_one_it_tells() {
    let (mut uart, _) = running();
    uart.receive(b"a");
    set(&mut uart, IER, 0x0f);
    set(&mut uart, MCR, 0x10);
    uart.write(DATA, &[b'b'; FIFO]);
    assert_eq!((get(&mut uart, IIR), get(&mut uart, IIR)), (0xc6, 0xc6));
    get(&mut uart, LSR);
    assert_eq!((get(&mut uart, IIR), get(&mut uart, IIR)), (0xc4, 0xc4));
    uart.read(DATA, &mut [0; FIFO]);
    assert_eq!(get(&mut uart, IIR), 0xc2);
    assert_eq!((get(&mut uart, IIR), get(&mut uart, IIR)), (0xc0, 0xc0));
    get(&mut uart, MSR);
    assert_eq!(get(&mut uart, IIR), 0xc1);
}

#[test]
fn the_trigger_level_tells_data_from_a_timeout() {
    for (fcr, trigger) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let (mut uart, _) = running();
        set(&mut uart, FCR, fcr);
        for count in 1..=FIFO {
            assert_eq!(uart.receive(b"x"), 1);
            assert_eq!(get(&mut uart, IIR), if count < trigger { 0xcc } else { 0xc4 });
        }
    }
}

#[test]
fn without_fifos_one_byte_is_taken_and_data_is_told() {
    let (mut uart, calls) = uart();
    set(&mut uart, IER, 0x01);
    assert_eq!(uart.receive(b"ab"), 1);
    assert_eq!((calls.pulses(), get(&mut uart, IIR)), (1, 0x04));
    assert_eq!((get(&mut uart, DATA), calls.wanted()), (b'a', 1));
    assert_eq!(uart.receive(b"b"), 1);
    assert_eq!((calls.pulses(), get(&mut uart, DATA)), (1, b'b'));
    assert_eq!((get(&mut uart, IIR), calls.wanted()), (0x01, 0));
}

#[test]
fn a_full_fifo_holds_input_back_and_asks_once_for_more() {
    let (mut uart, calls) = running();
    assert_eq!(uart.receive(&[b'x'; 20]), FIFO);
    assert_eq!(uart.receive(b"more"), 0);
    uart.read(DATA, &mut [0; FIFO - 1]);
    assert_eq!(calls.wanted(), 0);
    get(&mut uart, DATA);
    assert_eq!(calls.wanted(), 1);
    get(&mut uart, DATA);
    set(&mut uart, FCR, 0x83);
    assert_eq!(calls.wanted(), 0);
    assert_eq!(uart.receive(b"more"), 4);
    uart.read(DATA, &mut [0; 4]);
    assert_eq!(calls.wanted(), 0, "nothing was refused");
    assert_eq!(uart.receive(&[b'x'; 20]), FIFO);
    get(&mut uart, DATA);
    assert_eq!(uart.receive(b"y"), 1);
    uart.read(DATA, &mut [0; FIFO]);
    assert_eq!(calls.wanted(), 0, "the latest offer was taken whole");
}

#[test]
fn input_waits_for_the_receiver_interrupt() {
    let (mut uart, calls) = uart();
    assert_eq!((uart.receive(b"x"), calls.wanted()), (0, 0));
    set(&mut uart, IER, 0x02);
    assert_eq!((uart.receive(b"x"), calls.wanted()), (0, 0));
    set(&mut uart, IER, 0x03);
    assert_eq!((calls.wanted(), uart.receive(b"x")), (1, 1));
    set(&mut uart, IER, 0x00);
    calls.pulses();
    set(&mut uart, IER, 0x01);
    assert_eq!((calls.pulses(), get(&mut uart, DATA)), (1, b'x'));
}

#[test]
fn a_driver_that_polls_gets_its_input() {
    let (mut uart, calls) = uart();
    let mut input = b"type this\n".to_vec();
    assert_eq!(uart.receive(&input), 0);
    let mut seen = Vec::new();
    for _ in 0..100 {
        if get(&mut uart, LSR) & 0x01 != 0 {
            seen.push(get(&mut uart, DATA));
            set(&mut uart, DATA, seen[seen.len() - 1]);
        }
        if calls.wanted() > 0 {
            let taken = uart.receive(&input);
            input.drain(..taken);
        }
    }
    assert_eq!((seen.as_slice(), calls.pulses()), (&b"type this\n"[..], 0));
    assert_eq!(output(&mut uart), b"type this\n");
}

#[test]
fn console_output_is_no_polling() {
    let (mut uart, calls) = uart();
    assert_eq!(uart.receive(b"x"), 0);
    for _ in 0..1000 {
        get(&mut uart, LSR);
        set(&mut uart, DATA, b'.');
    }
    uart.write(DATA, &[b'.'; OUTPUT_LIMIT]);
    for _ in 0..1000 {
        get(&mut uart, LSR);
    }
    output(&mut uart);
    get(&mut uart, LSR);
    assert_eq!((uart.receive(b"x"), calls.wanted()), (0, 0));
}

#[test]
fn start_up_ends_polling() {
    for (offset, value) in [(IER, Some(0)), (FCR, Some(1)), (DATA, None)] {
        let (mut uart, _) = uart();
        uart.read(LSR, &mut [0; POLLS as usize]);
        assert_eq!(uart.receive(b"x"), 1);
        get(&mut uart, DATA);
        match value {
            Some(value) => set(&mut uart, offset, value),
            None => assert_eq!(get(&mut uart, offset), 0, "a blind read"),
        }
        assert_eq!(uart.receive(b"x"), 0);
    }
}

#[test]
fn the_fifo_control_register_clears_only_when_told() {
    let (mut uart, _) = uart();
    set(&mut uart, IER, 0x01);
    assert_eq!(uart.receive(b"a"), 1);
    set(&mut uart, FCR, 0x01);
    assert_eq!(uart.receive(b"bc"), 2);
    set(&mut uart, FCR, 0x02);
    assert_eq!((get(&mut uart, IIR), get(&mut uart, DATA)), (0x04, b'a'));
    set(&mut uart, FCR, 0x03);
    assert_eq!(get(&mut uart, LSR), IDLE);
}

/// A driver in Linux's manner, woken by edges alone, against a host that is woken by notifications alone:
/// everything arrives, in order, both ways, whatever the interleaving.
#[test]
fn edges_and_notifications_alone_move_every_byte() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let (mut uart, calls) = running();
        let message: Vec<u8> = (0..OUTPUT_LIMIT * 2).map(|_| random.next() as u8).collect();
        let (mut to_send, mut to_type) = (message.as_slice(), &message[..3000]);
        let (mut sent, mut typed) = (Vec::new(), Vec::new());
        set(&mut uart, IER, 0x07);
        let (mut drain, mut offer) = (false, true);
        for _ in 0..100_000 {
            drain |= calls.ready() > 0;
            offer |= calls.wanted() > 0;
            match random.below(64) {
                0 if drain => {
                    uart.take_output(&mut sent);
                    drain = false;
                }
                1..16 if offer => {
                    let taken = uart.receive(to_type);
                    to_type = &to_type[taken..];
                    offer = false;
                }
                16.. if calls.pulses() > 0 => {
                    // Linux gives up after so many rounds.
                    for _ in 0..512 {
                        if get(&mut uart, IIR) & 0x01 != 0 {
                            break;
                        }
                        while get(&mut uart, LSR) & 0x01 != 0 {
                            typed.push(get(&mut uart, DATA));
                        }
                        if get(&mut uart, LSR) & 0x20 != 0 {
                            let (now, later) = to_send.split_at(to_send.len().min(FIFO));
                            uart.write(DATA, now);
                            to_send = later;
                        }
                    }
                }
                _ => {}
            }
        }
        assert_eq!((uart.dropped(), to_send.len(), to_type.len()), (0, 0, 0));
        uart.take_output(&mut sent);
        assert!(sent == message && typed == message[..3000], "seed {seed}");
    }
}

#[test]
fn a_storm_of_accesses_leaves_memory_bounded() {
    let (mut uart, _) = uart();
    uart.write(DATA, &[0; OUTPUT_LIMIT - FIFO]);
    storm(&mut uart, LEN, 4, |uart| {
        uart.receive(b"a flood of input, more than fits");
        assert!(uart.regs.received.len() <= FIFO && uart.output.len() <= OUTPUT_LIMIT);
        assert!(uart.regs.received.capacity() <= 2 * FIFO && uart.output.capacity() <= 2 * OUTPUT_LIMIT);
    });
    assert!(uart.dropped() > 0);
}
