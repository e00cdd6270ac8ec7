//! The screen for viewers: kite in its sandbox, a guest that draws without end, and a viewer and a browser at the socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::Kite;
use crate::support::{guarded, kvm, until};

const WIDTH: usize = 1024;
const HEIGHT: usize = 768;
/// Nothing here takes that long; a test that hangs is to fail.
const HANG: Duration = Duration::from_secs(60);

guest!(
    // All of the screen in one colour, and then in the next.
    DRAWS_WITHOUT_END,
    map_apics!(),
    "mov ebx, 0x201800
     mov dword ptr [rbx], 0xe0000083
     mov dword ptr [rbx + 8], 0xe0200083
     xor eax, eax
     2: mov edi, 0xe0000000
     mov ecx, 786432
     3: mov [rdi], eax
     add rdi, 4
     dec ecx
     jnz 3b
     inc eax
     jmp 2b"
);

/// Connects to kite, once it listens.
fn connect(path: &Path) -> UnixStream {
    let mut stream = None;
    // The socket has its name a moment before it takes connections.
    until("kite to listen", || {
        stream = UnixStream::connect(path).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A viewer that has got in.
fn viewer(path: &Path) -> UnixStream {
    let mut stream = connect(path);
    read(&mut stream, 12);
    stream.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    let greeting = read(&mut stream, 2 + 4 + 24 + 4);
    assert_eq!(greeting[6..10], [4, 0, 3, 0], "the screen is of 1024 x 768");
    stream
}

/// Asks for what has changed; returns how many rows have, and a pixel of the last one.
fn update(stream: &mut UnixStream, incremental: u8) -> (usize, u32) {
    stream.write_all(&[3, incremental, 0, 0, 0, 0, 4, 0, 3, 0]).unwrap();
    let head = read(stream, 4);
    let (mut rows, mut pixel) = (0, 0);
    for _ in 0..u16::from_be_bytes([head[2], head[3]]) {
        let rect = read(stream, 12);
        assert_eq!((&rect[4..6], &rect[8..12]), (&[4, 0][..], &[0; 4][..]), "a raw rectangle of whole rows");
        let height = usize::from(u16::from_be_bytes([rect[6], rect[7]]));
        let pixels = read(stream, 4 * WIDTH * height);
        pixel = u32::from_le_bytes(*pixels.last_chunk().unwrap());
        rows += height;
    }
    (rows, pixel)
}

#[test]
fn a_viewer_sees_what_a_guest_draws_and_a_browser_gets_an_answer() {
    needs!(kvm());
    guarded(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vnc.sock");
        let kite = Kite::run(&DRAWS_WITHOUT_END, &["--screen", "--vnc", &format!("unix:{}", path.display())]);
        let mut viewer = viewer(&path);
        let (rows, mut last) = update(&mut viewer, 0);
        assert_eq!(rows, HEIGHT);
        // What is drawn comes, again and again.
        for _ in 0..3 {
            until("another colour", || {
                let (rows, pixel) = update(&mut viewer, 1);
                assert!((1..=HEIGHT).contains(&rows));
                std::mem::replace(&mut last, pixel) < pixel
            });
        }
        let mut browser = connect(&path);
        browser.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut page = String::new();
        browser.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 ") && page.contains("<title>kite</title>"), "{page}");
        // A key, which no driver takes, and a viewer that goes in the midst.
        viewer.write_all(&[4, 1, 0, 0, 0, 0, 0, b'a', 3, 0, 0, 0, 0, 0, 4, 0, 3, 0]).unwrap();
        drop(viewer);
        assert_eq!(update(&mut self::viewer(&path), 0).0, HEIGHT);
        kite.signal(Signal::SIGTERM);
        kite.end().assert_killed_by(Signal::SIGTERM);
        assert!(!path.exists(), "the socket's name goes with the machine");
    });
}
