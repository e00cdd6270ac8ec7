//! The screen: a guest that draws on the frame buffer, and what a viewer sees, by the library; and the devices that come
//! with it.

use std::sync::Arc;

use boot::kernel::Image;
use boot::testing::Entry;
use devices::chipset::serial::Host;
use devices::screen::Size;
use kite::backend::screen::Display;
use kite::observe::trace::Timeline;
use kite::spec::MachineSpec;
use kite::spec::device::{DeviceSpec, ScreenSpec};
use kite::vm::load::Guest;
use kite::vm::machine::{Machine, Running};
use kite::vm::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::process::Kite;
use crate::support::guest::{Elf, RESULTS};
use crate::support::{guarded, kvm, until};

/// A row is a page, which is what is known of changes.
const SCREEN: ScreenSpec = ScreenSpec { width: 1024, height: 64 };
/// Where the guest waits for the host.
const GO: u64 = RESULTS + 8;

/// The host's end of a serial line without a terminal.
struct Unconnected;

impl Host for Unconnected {
    fn output_ready(&self) {}
    fn input_wanted(&self) {}
}

guest!(
    // Each pixel is its number; then, when it is asked to, one in row 7 and one in the last.
    DRAWS,
    map_apics!(),
    "mov ebx, 0x201800
     mov dword ptr [rbx], 0xe0000083
     mov ebx, 0x200000
     mov edi, 0xe0000000
     xor eax, eax
     2: mov [rdi + rax * 4], eax
     inc eax
     cmp eax, 65536
     jb 2b
     mov byte ptr [rbx], 1
     3: pause
     cmp byte ptr [rbx + 8], 1
     jne 3b
     mov dword ptr [rdi + 0x7004], 0x123456
     mov dword ptr [rdi + 0x3fffc], 0x654321
     mov byte ptr [rbx], 2
     cli
     4: hlt
     jmp 4b"
);

fn result(running: &Running) -> u8 {
    running.ram().memory().read_obj(GuestAddress(RESULTS)).unwrap()
}

/// Runs the guest on a machine whose screen is `display`.
fn run(display: &Display) -> Running {
    let elf = Elf::new(DRAWS.code(), Entry::Long);
    let image = Image::open(&elf.path).unwrap();
    let devices = vec![DeviceSpec::Screen(SCREEN)];
    let spec = MachineSpec { memory: 64 << 20, devices, ..MachineSpec::default() };
    let ram = GuestRam::new(spec.memory).unwrap().with_frame_buffer(SCREEN.frame_buffer().len()).unwrap();
    let (ram, timeline) = (Arc::new(ram), Timeline::default());
    let guest = Guest { image: &image, initrd: &[], cmdline: "", module: "" };
    let info = guest.load(&spec, 0, &ram, &timeline).unwrap();
    let kvm = kite::vm::open_kvm().unwrap();
    let mut machine =
        Machine::build(&kvm, &mut None, &spec, ram, Box::new(Unconnected), Vec::new(), &timeline).unwrap();
    machine.boot(&image, info).unwrap();
    display.begin(machine.vm());
    let running = machine.start().unwrap();
    running.release();
    running
}

#[test]
fn what_a_guest_writes_to_the_frame_buffer_is_seen_and_only_rows_that_changed() {
    needs!(kvm());
    guarded(|| {
        let display = Display::new(SCREEN.size()).unwrap();
        let mut viewer = display.screen().attach().unwrap();
        viewer.look();
        let running = run(&display);
        until("the guest to have drawn", || result(&running) == 1);
        let look = viewer.look();
        assert_eq!((look.replaced, look.silent), (true, true));
        assert_eq!(look.surface.size(), Size { width: 1024, height: 64 });
        let mut row = vec![0; 1024];
        for y in 0..64 {
            look.surface.read(0, y, &mut row);
            assert!(row.iter().copied().eq(y * 1024..(y + 1) * 1024), "row {y}: {row:x?}");
        }
        assert_eq!(viewer.look().rows, []);
        running.ram().memory().write_obj(1u8, GuestAddress(GO)).unwrap();
        until("the guest to have drawn again", || result(&running) == 2);
        let look = viewer.look();
        assert_eq!((look.replaced, look.rows), (false, vec![7..8, 63..64]));
        look.surface.read(1, 7, &mut row[..1]);
        look.surface.read(1023, 63, &mut row[1..2]);
        assert_eq!(row[..2], [0x12_3456, 0x65_4321]);
        assert_eq!(viewer.look().rows, []);
    });
}

#[test]
fn a_viewer_goes_on_with_the_next_machine_and_looks_at_none_that_has_gone() {
    needs!(kvm());
    guarded(|| {
        let display = Display::new(SCREEN.size()).unwrap();
        let mut viewer = display.screen().attach().unwrap();
        for _ in 0..2 {
            let running = run(&display);
            until("the guest to have drawn", || result(&running) == 1);
            assert!(viewer.look().replaced);
            drop(running);
            assert_eq!(viewer.look().rows, []);
        }
    });
}

guest!(
    DRAWS_AND_CRASHES,
    map_apics!(),
    "mov ebx, 0x201800
     mov dword ptr [rbx], 0xe0000083
     mov edi, 0xe0000000
     xor eax, eax
     2: mov [rdi + rax * 4], eax
     inc eax
     cmp eax, 4096
     jb 2b
     ud2"
);
guest!(POWERS_OFF, power_off!());

#[test]
fn a_run_that_fails_leaves_a_picture_of_its_screen_and_another_none() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("screen.png");
    let option = format!("--screenshot-on-failure={}", path.display());
    for sandbox in ["--sandbox=auto", "--sandbox=none"] {
        let options = ["--screen=64x64", &option, sandbox];
        Kite::run(&POWERS_OFF, &options).end().assert(0, "", "");
        assert!(!path.exists());
        let end = Kite::run(&DRAWS_AND_CRASHES, &options).end();
        assert_eq!(end.status.code(), Some(255), "{}", end.stderr);
        let png = std::fs::read(&path).unwrap();
        assert_eq!(png[12..26], *b"IHDR\0\0\0\x40\0\0\0\x40\x08\x02");
        let len = u32::from_be_bytes(png[33..37].try_into().unwrap()) as usize;
        let mut samples = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(&png[41..41 + len]), &mut samples)
            .unwrap();
        let pixels = (0..64u32).flat_map(|y| {
            let row = (64 * y..64 * (y + 1)).flat_map(|pixel| pixel.to_be_bytes()[1..].to_vec());
            std::iter::once(0).chain(row)
        });
        assert!(samples.into_iter().eq(pixels));
        std::fs::remove_file(&path).unwrap();
    }
}

macro_rules! finds {
    ($name:ident, $kind:literal) => {
        guest!(
            $name,
            map_apics!(),
            find_device!($kind),
            say!("'Y'"),
            power_off!(),
            "8:",
            say!("'N'"),
            power_off!(),
        );
    };
}
finds!(FINDS_A_GRAPHICS_CARD, 16);
finds!(FINDS_AN_INPUT_DEVICE, 18);

#[test]
fn a_guest_with_a_screen_finds_a_graphics_card_and_input_devices() {
    needs!(kvm());
    for guest in [&FINDS_A_GRAPHICS_CARD, &FINDS_AN_INPUT_DEVICE] {
        for (options, found) in
            [(&["--screen"][..], "Y"), (&["--screen=64x4095", "--no-acpi"], "N"), (&[], "N")]
        {
            Kite::run(guest, options).end().assert(0, found, "");
        }
    }
}
