//! Viewers and browsers at the socket, and a picture that changes on the other side.

mod browser;
mod client;
mod hostile;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::screen::{CURSOR, Cursor, Input, PixelMemory, Pixels, Size, Surface};
use tempfile::TempDir;

use super::encoding::{
    CURSOR_SHAPE, DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, QEMU_EXTENDED_KEY, RAW, TIGHT, ZRLE,
};
use super::*;
use client::{Client, Format, Part, XRGB, answer, connect, is_closed, read};

/// Keeps what it is sent.
#[derive(Default)]
pub(super) struct Log(pub(super) Mutex<Vec<Input>>);

impl InputSink for Log {
    fn send(&self, group: &[Input]) {
        self.0.lock().unwrap().extend(group);
    }
}

impl Log {
    /// What it has been sent, once that is so much.
    fn wait_for(&self, count: usize) -> Vec<Input> {
        let start = Instant::now();
        loop {
            let inputs = self.0.lock().unwrap().clone();
            if inputs.len() >= count {
                return inputs;
            }
            assert!(start.elapsed() < client::HANG, "only {inputs:?} has come");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Pixels that count how often they are read.
struct Counted(PixelMemory, AtomicUsize);

impl Pixels for Counted {
    fn read(&self, at: usize, into: &mut [u32]) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read(at, into);
    }
}

/// A server, with the screen and the log behind it.
struct Rig {
    screen: Arc<Screen>,
    surface: Arc<Surface>,
    pixels: Arc<Counted>,
    log: Arc<Log>,
    path: PathBuf,
    _vnc: Vnc,
    folder: TempDir,
}

impl Rig {
    fn new(width: u32, height: u32) -> Self {
        Self::with(width, height, |_| {})
    }

    fn with_password(password: &str) -> Self {
        Self::with(64, 48, |spec| {
            let path = spec.novnc.as_ref().unwrap().join("password");
            std::fs::write(&path, password).unwrap();
            spec.password_file = Some(path);
        })
    }

    /// A screen of so many pixels behind a server as `change` has it.
    fn with(width: u32, height: u32, change: impl FnOnce(&mut VncSpec)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("core")).unwrap();
        std::fs::create_dir_all(folder.path().join("vendor")).unwrap();
        std::fs::write(folder.path().join("core/rfb.js"), "export default RFB;").unwrap();
        let path = folder.path().join("vnc.sock");
        let screen = Arc::new(Screen::new(Size::new(width, height).unwrap()).unwrap());
        let log = Arc::new(Log::default());
        let (listen, novnc) = (Address::Unix(path.clone()), Some(folder.path().to_owned()));
        let mut spec = VncSpec { listen, password_file: None, novnc };
        change(&mut spec);
        let mut vnc = Vnc::open(&spec, screen.clone(), log.clone()).unwrap();
        vnc.start().unwrap();
        let (surface, pixels) = put_up(&screen, width, height);
        Self { screen, surface, pixels, log, path, _vnc: vnc, folder }
    }

    /// Draws rows in a pattern that belongs to `seed`.
    fn draw(&self, rows: std::ops::Range<u32>, seed: u32) {
        let width = self.surface.size().width;
        let area = (rows.end - rows.start) * width;
        let drawn = (0..area).map(|at| pattern(at % width, rows.start + at / width, seed));
        self.pixels.0.write((rows.start * width) as usize, drawn);
        self.screen.drawn(&self.surface, rows);
    }

    /// What the screen shows.
    fn picture(&self) -> Vec<[u32; 3]> {
        let Size { width, height } = self.surface.size();
        let mut pixels = vec![0; (width * height) as usize];
        for (row, y) in pixels.chunks_mut(width as usize).zip(0..) {
            self.surface.read(0, y, row);
        }
        pixels.into_iter().map(|pixel| [pixel >> 16 & 255, pixel >> 8 & 255, pixel & 255]).collect()
    }

    /// Asserts that `client` has the screen's picture, as near as its format allows.
    fn assert_shown(&self, client: &Client) {
        let Format(_, _, _, max, _) = client.format;
        let expected = self.picture();
        assert_eq!(expected.len(), client.picture.len());
        for (at, (own, shown)) in expected.iter().zip(&client.picture).enumerate() {
            for color in 0..3 {
                let max = u32::from(max[color]);
                let near = (own[color] * max).abs_diff(shown[color].saturating_mul(255));
                assert!(near <= 127, "pixel {at}: {own:?} is shown as {shown:?} in {:?}", client.format);
            }
        }
    }
}

fn put_up(screen: &Screen, width: u32, height: u32) -> (Arc<Surface>, Arc<Counted>) {
    let size = Size::new(width, height).unwrap();
    let pixels = Arc::new(Counted(PixelMemory::new(size.area()).unwrap(), AtomicUsize::new(0)));
    let surface = Arc::new(Surface::new(size, 0, width as usize, pixels.clone()));
    screen.put_up(surface.clone());
    (surface, pixels)
}

/// A picture of areas: one colour, two, four, sixteen, and noise.
fn pattern(x: u32, y: u32, seed: u32) -> u32 {
    let noise = (x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77)).wrapping_mul(0xc2b2_ae3d) >> 4;
    let colors = [1, 2, 4, 16, u32::MAX][(x / 64 + y / 64 + seed) as usize % 5];
    // The upper eight bits mean nothing.
    (noise % colors).wrapping_mul(0x00ab_cdef).wrapping_add(seed * 0x0102_0304) | (noise << 24)
}

#[test]
fn each_version_of_the_protocol_gets_in() {
    let rig = Rig::new(64, 48);
    for version in [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n", b"RFB 003.889\n", b"RFB 005.000\n"]
    {
        let mut stream = connect(&rig.path);
        assert_eq!(read(&mut stream, 12), b"RFB 003.008\n");
        std::io::Write::write_all(&mut stream, version).unwrap();
        if version == b"RFB 003.003\n" {
            assert_eq!(read(&mut stream, 4), [0, 0, 0, 1]);
        } else {
            assert_eq!(read(&mut stream, 2), [1, 1]);
            std::io::Write::write_all(&mut stream, &[1]).unwrap();
        }
        if version[10] > b'7' || version[6] > b'3' {
            assert_eq!(read(&mut stream, 4), [0; 4]);
        }
        let mut client = Client::admitted(stream);
        assert_eq!((client.width, client.height), (64, 48));
        client.refresh(false);
        rig.assert_shown(&client);
    }
}

#[test]
fn only_a_viewer_with_the_password_gets_in() {
    let rig = Rig::with_password("secret\n");
    for version in [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n"] {
        for password in ["secret", "Secret", "secret1", ""] {
            let mut stream = connect(&rig.path);
            read(&mut stream, 12);
            std::io::Write::write_all(&mut stream, version).unwrap();
            if version[10] == b'3' {
                assert_eq!(read(&mut stream, 4), [0, 0, 0, 2]);
            } else {
                assert_eq!(read(&mut stream, 2), [1, 2]);
                std::io::Write::write_all(&mut stream, &[2]).unwrap();
            }
            let challenge = read(&mut stream, 16);
            std::io::Write::write_all(&mut stream, &answer(&challenge, password)).unwrap();
            let result = read(&mut stream, 4);
            if password == "secret" {
                assert_eq!(result, [0; 4]);
                Client::admitted(stream).refresh(false);
                continue;
            }
            assert_eq!(result, [0, 0, 0, 1]);
            if version[10] == b'8' {
                assert_eq!(read(&mut stream, 25), b"\0\0\0\x15the password is wrong");
            }
            assert!(is_closed(&mut stream));
        }
    }
}

#[test]
fn challenges_differ_and_nothing_but_the_offered_type_is_taken() {
    let rig = Rig::with_password("secret");
    let challenge = |kind| {
        let mut stream = connect(&rig.path);
        read(&mut stream, 12);
        std::io::Write::write_all(&mut stream, b"RFB 003.008\n").unwrap();
        read(&mut stream, 2);
        std::io::Write::write_all(&mut stream, &[kind]).unwrap();
        if kind == 2 {
            return Some(read(&mut stream, 16));
        }
        assert!(is_closed(&mut stream));
        None
    };
    assert_ne!(challenge(2), challenge(2));
    assert_eq!([challenge(0), challenge(1), challenge(255)], [None, None, None]);
}

#[test]
fn each_encoding_gives_the_same_picture_in_each_format() {
    let formats = [
        XRGB,
        Format(32, 24, true, [255; 3], [16, 8, 0]),
        Format(32, 24, false, [255; 3], [0, 8, 16]),
        Format(32, 24, false, [255; 3], [24, 16, 8]),
        Format(32, 24, true, [255; 3], [8, 16, 24]),
        Format(32, 30, false, [1023; 3], [20, 10, 0]),
        Format(16, 16, false, [31, 63, 31], [11, 5, 0]),
        Format(16, 15, true, [31; 3], [10, 5, 0]),
        Format(8, 8, false, [7, 7, 3], [0, 3, 6]),
    ];
    for (width, height) in [(200, 131), (1, 1), (2, 3), (2500, 3)] {
        let rig = Rig::new(width, height);
        for encodings in [&[RAW][..], &[ZRLE], &[TIGHT], &[]] {
            let mut client = Client::new(&rig.path);
            client.set_encodings(encodings);
            for (format, seed) in formats.into_iter().zip(0..) {
                rig.draw(0..height, seed);
                client.set_format(format);
                client.refresh(false);
                rig.assert_shown(&client);
            }
        }
    }
}

#[test]
fn the_viewers_first_choice_that_kite_has_is_used() {
    let rig = Rig::new(128, 64);
    for (encodings, number) in
        [(&[1, 5, ZRLE, TIGHT, RAW][..], ZRLE), (&[TIGHT, ZRLE], TIGHT), (&[5, -1], RAW), (&[RAW, ZRLE], RAW)]
    {
        let mut client = Client::new(&rig.path);
        client.set_encodings(encodings);
        client.request(false);
        let head = client.read(16);
        assert_eq!(head[12..], number.to_be_bytes(), "{encodings:?}");
    }
}

#[test]
fn what_has_changed_comes_when_it_does_and_nothing_else() {
    let rig = Rig::new(100, 300);
    let mut client = Client::new(&rig.path);
    let bands = |rows: &[(u16, u16)]| -> Vec<_> {
        rows.iter().map(|(y, height)| Part::Pixels(0, *y, 100, *height)).collect()
    };
    let whole = bands(&[(0, 64), (64, 64), (128, 64), (192, 64), (256, 44)]);
    assert_eq!(client.refresh(true), whole);
    client.request(true);
    rig.draw(10..20, 1);
    assert_eq!(client.update(), bands(&[(10, 10)]));
    rig.draw(0..1, 2);
    rig.draw(299..300, 2);
    assert_eq!(client.refresh(true), bands(&[(0, 1), (299, 1)]));
    // Rows that are not asked for wait until they are.
    rig.draw(0..300, 3);
    client.send(&[3, 1, 0, 0, 0, 100, 0, 100, 0, 50]);
    assert_eq!(client.update(), bands(&[(100, 50)]));
    assert_eq!(client.refresh(true), bands(&[(0, 64), (64, 36), (150, 64), (214, 64), (278, 22)]));
    rig.assert_shown(&client);
    // All of it is there again if it is asked for.
    assert_eq!(client.refresh(false), whole);
}

#[test]
fn nothing_is_read_for_a_viewer_that_has_not_asked() {
    let rig = Rig::new(64, 64);
    let mut client = Client::new(&rig.path);
    client.refresh(false);
    let reads = rig.pixels.1.load(Ordering::SeqCst);
    rig.draw(0..64, 1);
    // Another viewer comes and is served, so the first one's turn has been as well.
    Client::new(&rig.path).refresh(false);
    assert_eq!(rig.pixels.1.load(Ordering::SeqCst), reads + 64);
    client.refresh(true);
    rig.assert_shown(&client);
}

#[test]
fn a_new_size_reaches_viewers_that_understand_it() {
    for (number, part) in
        [(DESKTOP_SIZE, Part::Size(90, 40)), (EXTENDED_DESKTOP_SIZE, Part::ExtendedSize(0, 0, 90, 40))]
    {
        let mut rig = Rig::new(64, 48);
        let (mut client, mut old) = (Client::new(&rig.path), Client::new(&rig.path));
        client.set_encodings(&[ZRLE, number]);
        let first = client.refresh(false);
        assert_eq!(first.contains(&Part::ExtendedSize(0, 0, 64, 48)), number == EXTENDED_DESKTOP_SIZE);
        old.refresh(false);
        client.request(true);
        (rig.surface, rig.pixels) = put_up(&rig.screen, 90, 40);
        assert_eq!(client.update(), [part]);
        rig.draw(0..40, 2);
        client.update();
        client.refresh(false);
        rig.assert_shown(&client);
        // The other sees what has room, and black around it.
        assert_eq!(old.refresh(true), [Part::Pixels(0, 0, 64, 48)]);
        let expected = rig.picture();
        for (at, pixel) in old.picture.iter().enumerate() {
            let (x, y) = (at % 64, at / 64);
            assert_eq!(*pixel, if y < 40 { expected[y * 90 + x] } else { [0; 3] }, "{x}, {y}");
        }
    }
}

#[test]
fn a_viewer_may_ask_for_another_size() {
    let rig = Rig::new(64, 48);
    let mut client = Client::new(&rig.path);
    client.set_encodings(&[EXTENDED_DESKTOP_SIZE]);
    client.refresh(false);
    let ask = |client: &mut Client, width: u16, height: u16, screens: u8| {
        let [a, b] = width.to_be_bytes();
        let [c, d] = height.to_be_bytes();
        client.send(&[251, 0, a, b, c, d, screens, 0]);
        client.send(&vec![0; 16 * usize::from(screens)]);
        client.refresh(true)
    };
    let result = |result| [Part::ExtendedSize(1, result, 64, 48)];
    assert_eq!(ask(&mut client, 80, 60, 1), result(1), "no device takes it");
    rig.screen.set_resizable(true);
    assert_eq!(ask(&mut client, 80, 60, 1), result(4));
    assert_eq!(rig.screen.wish(), Size::new(80, 60).unwrap());
    for (width, height, screens) in [(0, 60, 1), (80, 65535, 1), (80, 60, 0), (80, 60, 255)] {
        assert_eq!(ask(&mut client, width, height, screens), result(3));
    }
    assert_eq!(rig.screen.wish(), Size::new(80, 60).unwrap());
    assert_eq!(client.refresh(false).len(), 1);
}

#[test]
fn the_pointers_picture_reaches_viewers_that_draw_it() {
    let rig = Rig::new(64, 48);
    let mut client = Client::new(&rig.path);
    client.set_encodings(&[RAW, CURSOR_SHAPE]);
    assert_eq!(client.refresh(false), [Part::Pixels(0, 0, 64, 48)]);
    client.request(true);
    let pixels = vec![0xff12_3456; (CURSOR * CURSOR) as usize];
    rig.screen.set_cursor(Some(Cursor { hot_x: 3, hot_y: u32::MAX, pixels }));
    assert_eq!(client.update(), [Part::Cursor(3, 63, 64, [0x12, 0x34, 0x56], true)]);
    client.request(true);
    rig.screen.set_cursor(Some(Cursor { hot_x: 0, hot_y: 0, pixels: Vec::new() }));
    assert_eq!(client.update(), [Part::Cursor(0, 0, 64, [0; 3], false)]);
    client.request(true);
    rig.screen.set_cursor(None);
    assert_eq!(client.update(), [Part::Cursor(0, 0, 0, [0; 3], false)]);
}

#[test]
fn keys_and_the_pointer_reach_the_guest_and_are_let_go() {
    let rig = Rig::new(64, 48);
    let mut client = Client::new(&rig.path);
    client.set_encodings(&[QEMU_EXTENDED_KEY]);
    assert_eq!(client.refresh(false), [Part::ExtendedKeys, Part::Pixels(0, 0, 64, 48)]);
    client.send(&[4, 1, 0, 0, 0, 0, 0, b'a']);
    client.send(&[4, 0, 0, 0, 0, 0, 0, b'a']);
    client.send(&[255, 0, 0, 1, 0, 0, 0xff, 0xe4, 0, 0, 0, 0x9d]);
    client.send(&[5, 4, 0, 63, 0, 0]);
    drop(client);
    let key = |code, down| Input::Key { code, down };
    let button = |down| Input::Button { button: devices::screen::Button::Right, down };
    let pointer = Size::new(64, 48).unwrap().position(63, 0);
    let expected =
        [key(30, true), key(30, false), key(97, true), pointer, button(true), key(97, false), button(false)];
    assert_eq!(rig.log.wait_for(7), expected);
}

#[test]
fn the_socket_is_this_users_alone_and_goes_with_the_server() {
    use std::os::unix::fs::PermissionsExt;
    let mut rig = Rig::new(64, 48);
    let mode = std::fs::metadata(&rig.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::new(&rig.path);
    let other = Rig::with(64, 48, |spec| spec.listen = Address::Unix(rig.folder.path().join("other")));
    assert!(other.folder.path().join("core").exists());
    let name = rig._vnc.take_name();
    drop(rig._vnc);
    assert!(is_closed(&mut client.stream));
    drop(name);
    assert!(!rig.path.exists());
}

#[test]
fn an_address_that_is_taken_is_said() {
    let rig = Rig::new(64, 48);
    let open = |listen| {
        let spec = VncSpec { listen, password_file: None, novnc: None };
        let error = Vnc::open(&spec, rig.screen.clone(), rig.log.clone()).map(drop).unwrap_err();
        format!("{error:#}")
    };
    let error = open(Address::Unix(rig.path.clone()));
    assert!(error.starts_with(&format!("cannot listen on unix:{} for VNC: ", rig.path.display())), "{error}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = open(Address::Tcp(address));
    assert!(error.starts_with(&format!("cannot listen on {address} for VNC: Address already")), "{error}");
}

#[test]
fn a_viewer_comes_by_tcp_as_well() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _rig = Rig::with(64, 48, |spec| spec.listen = Address::Tcp(free));
    let mut stream = std::net::TcpStream::connect(free).unwrap();
    stream.set_read_timeout(Some(client::HANG)).unwrap();
    assert_eq!(read(&mut stream, 12), b"RFB 003.008\n");
}
