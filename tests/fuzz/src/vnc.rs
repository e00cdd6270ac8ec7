//! The server of VNC, and the guest's screen behind it, between viewers and browsers that say anything at any time.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use devices::screen::{Cursor, Input, InputSink, PixelMemory, Screen, Size, Surface};
use kite::backend::vnc::Site;
use kite::backend::vnc::connection::Connection;
use kite::backend::vnc::novnc::Pages;
use kite::backend::vnc::password::Password;
use kite::backend::vnc::session::Display;

use crate::{bytes, each, list};

/// Encodings that mean something, some of them to other servers.
const ENCODINGS: [i32; 8] = [0, 7, 16, -223, -239, -258, -308, 1];
const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const HELLO: &[u8] = b"RFB 003.008\n\x01\x01";

/// What a viewer, the guest or time does.
#[derive(Arbitrary, Debug)]
enum Act<'a> {
    Send(#[arbitrary(with = bytes)] &'a [u8]),
    /// The handshake of a viewer that needs no password.
    Hello,
    Upgrade,
    /// A frame of a browser's, whose mask changes nothing.
    Frame(u8, #[arbitrary(with = bytes)] &'a [u8]),
    HelloInFrame,
    Format([u8; 16]),
    Encodings(#[arbitrary(with = list)] Vec<u8>),
    Request(bool, u16, u16),
    DesktopSize(u16, u16, u8),
    /// Takes so much of what has come.
    Take(u16),
    Draw(u8, u8, u8),
    PutUp(u8, u8),
    Point(Option<u8>),
    /// So many milliseconds pass.
    Pass(u16),
    /// Another one takes its place.
    Anew,
}

/// Holds what it is sent to what a guest can get.
struct Checked;

impl InputSink for Checked {
    fn send(&self, group: &[Input]) {
        assert!(!group.is_empty() && group.len() <= 16);
        for input in group {
            if let Input::Key { code, .. } = input {
                assert!((1..256).contains(code), "key {code}");
            }
        }
    }
}

struct Rig {
    screen: Arc<Screen>,
    surface: Arc<Surface>,
    pixels: Arc<PixelMemory>,
    site: Site,
    now: Instant,
    viewer: UnixStream,
    connection: Option<Connection>,
}

impl Rig {
    fn new(has_password: bool) -> Self {
        let size = Size::new(8, 8).unwrap();
        let screen = Arc::new(Screen::new(size).unwrap());
        let password = has_password.then(|| Password::new(b"secret").unwrap());
        let input = Arc::new(Checked);
        let display = Display { screen: screen.clone(), input, password, name: "fuzz".to_owned() };
        let site = Site::new(Arc::new(display), Pages::default());
        let (viewer, now) = (UnixStream::pair().unwrap().0, Instant::now());
        let pixels = Arc::new(PixelMemory::default());
        let surface = Arc::new(Surface::new(size, 0, 0, pixels.clone()));
        let mut rig = Self { screen, surface, pixels, site, now, viewer, connection: None };
        rig.put_up(size);
        rig.connect();
        rig
    }

    fn connect(&mut self) {
        let (viewer, server) = UnixStream::pair().unwrap();
        viewer.set_nonblocking(true).unwrap();
        self.viewer = viewer;
        self.connection = Some(Connection::new(server.into(), self.now));
    }

    fn put_up(&mut self, size: Size) {
        self.pixels = Arc::new(PixelMemory::new(size.area()).unwrap());
        self.surface = Arc::new(Surface::new(size, 0, size.width as usize, self.pixels.clone()));
        self.screen.put_up(self.surface.clone());
    }

    fn send(&mut self, bytes: &[u8]) {
        // One that has been disconnected, or is not read, sends nothing.
        let _ = self.viewer.write(bytes);
    }

    /// A frame with a mask of zeros.
    fn frame(&mut self, first: u8, content: &[u8]) {
        self.send(&[&[first, 0x80 | content.len() as u8, 0, 0, 0, 0][..], content].concat());
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut taken = vec![0; count];
        let len = self.viewer.read(&mut taken).unwrap_or_default();
        taken.truncate(len);
        taken
    }

    fn serve(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.notice_change();
            if !connection.serve(true, self.now, &mut self.site) {
                self.connection = None;
            }
        }
    }

    fn act(&mut self, act: &Act<'_>) {
        match act {
            Act::Send(bytes) => self.send(bytes),
            Act::Hello => self.send(HELLO),
            Act::Upgrade => self.send(UPGRADE),
            Act::Frame(first, content) => self.frame(*first, content),
            Act::HelloInFrame => self.frame(0x82, HELLO),
            Act::Format(format) => self.send(&[&[0; 4][..], format].concat()),
            Act::Encodings(numbers) => {
                let mut message = vec![2, 0, 0, numbers.len() as u8];
                let numbers = numbers.iter().map(|it| ENCODINGS[usize::from(*it) % ENCODINGS.len()]);
                message.extend(numbers.flat_map(i32::to_be_bytes));
                self.send(&message);
            }
            Act::Request(incremental, y, height) => {
                let (y, height) = (y.to_be_bytes(), height.to_be_bytes());
                let message = [3, u8::from(*incremental), 0, 0, y[0], y[1], 0, 8, height[0], height[1]];
                self.send(&message);
            }
            Act::DesktopSize(width, height, screens) => {
                let (width, height) = (width.to_be_bytes(), height.to_be_bytes());
                self.send(&[251, 0, width[0], width[1], height[0], height[1], *screens, 0]);
            }
            Act::Take(count) => _ = self.take((*count).into()),
            Act::Draw(from, to, color) => {
                self.pixels.write(
                    usize::from(*from),
                    std::iter::repeat_n(u32::from(*color).wrapping_mul(0x0102_0304), 64),
                );
                self.screen.drawn(&self.surface, u32::from(*from)..u32::from(*to));
            }
            Act::PutUp(width, height) => {
                let size = Size::new(1 + u32::from(*width), 1 + u32::from(*height)).unwrap();
                self.screen.set_resizable(width % 2 == 0);
                self.put_up(size);
            }
            Act::Point(side) => {
                let cursor = |side: &u8| Cursor {
                    hot_x: (*side).into(),
                    hot_y: u32::MAX,
                    pixels: vec![0xffff_ffff; usize::from(*side) * 20],
                };
                self.screen.set_cursor(side.as_ref().map(cursor));
            }
            Act::Pass(time) => self.now += Duration::from_millis((*time).into()),
            Act::Anew => self.connect(),
        }
        self.serve();
    }
}

pub fn run(data: &[u8]) {
    let Some((options, data)) = data.split_first() else { return };
    let has_password = options % 8 == 0;
    let mut rig = Rig::new(has_password);
    for act in each(data, 300) {
        rig.act(&act);
    }
    if !has_password {
        works(&mut rig);
    }
}

/// Whatever the others did, a viewer that does everything right sees the picture.
fn works(rig: &mut Rig) {
    rig.put_up(Size::new(4, 2).unwrap());
    rig.pixels.write(0, 1..=8);
    rig.screen.drawn(&rig.surface, 0..2);
    rig.connect();
    rig.send(HELLO);
    rig.send(&[3, 0, 0, 0, 0, 0, 0, 4, 0, 2]);
    let mut got = Vec::new();
    while got.len() < 12 + 2 + 4 + 28 + 4 + 12 + 32 {
        rig.now += Duration::from_millis(1);
        rig.serve();
        match rig.viewer.read_to_end(&mut got) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            end => panic!("a viewer is disconnected after {got:?}: {end:?}"),
        }
    }
    let picture: Vec<_> = (1..=8).flat_map(u32::to_le_bytes).collect();
    assert_eq!(got[got.len() - 32..], picture);
}
