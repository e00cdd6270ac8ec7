//! A viewer of the specification's own making: what it gets becomes a picture again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use des::Des;
use des::cipher::{Block, BlockCipherEncrypt, KeyInit};
use flate2::{Decompress, FlushDecompress};

use super::super::encoding::{CURSOR_SHAPE, DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, QEMU_EXTENDED_KEY};

/// Nothing here takes that long; a test that hangs is to fail.
pub const HANG: Duration = Duration::from_secs(60);

/// A format of pixels: bits, depth, big endian, maxima and shifts.
#[derive(Clone, Copy, Debug)]
pub struct Format(pub u8, pub u8, pub bool, pub [u16; 3], pub [u8; 3]);

pub const XRGB: Format = Format(32, 24, false, [255; 3], [16, 8, 0]);

impl Format {
    pub fn bytes(self) -> [u8; 16] {
        let Self(bits, depth, big_endian, max, shift) = self;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[bits, depth, big_endian.into(), 1]);
        for at in 0..3 {
            bytes[4 + 2 * at..6 + 2 * at].copy_from_slice(&max[at].to_be_bytes());
        }
        bytes[10..13].copy_from_slice(&shift);
        bytes
    }

    /// Red, green and blue of a pixel, as they are.
    fn colors(self, value: u32) -> [u32; 3] {
        let Self(.., max, shift) = self;
        std::array::from_fn(|at| value >> shift[at] & u32::from(max[at]))
    }

    /// A pixel of `bytes`, of which ZRLE may have dropped one that has no colour.
    fn value(self, bytes: &[u8]) -> u32 {
        let Self(bits, _, big_endian, max, shift) = self;
        let used = (0..3).fold(0, |used, at| used | u32::from(max[at]) << shift[at]);
        let low = if big_endian { bytes.to_vec() } else { bytes.iter().rev().copied().collect() };
        let value = low.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
        let dropped = usize::from(bits / 8) - bytes.len();
        if dropped > 0 && used >> 24 != 0 { value << 8 } else { value }
    }
}

/// What an update had.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// A rectangle of pixels: x, y, width, height.
    Pixels(u16, u16, u16, u16),
    /// The pointer's picture: where it points, its side, its first pixel and whether that is opaque.
    Cursor(u16, u16, u16, [u32; 3], bool),
    Size(u16, u16),
    /// Reason, result, width, height.
    ExtendedSize(u16, u16, u16, u16),
    ExtendedKeys,
}

pub struct Client {
    pub stream: UnixStream,
    pub width: usize,
    pub height: usize,
    pub format: Format,
    /// The colours of each pixel.
    pub picture: Vec<[u32; 3]>,
    zrle: Decompress,
    tight: Decompress,
}

/// What a viewer with this password answers.
pub fn answer(challenge: &[u8], password: &str) -> Vec<u8> {
    let mut key = [0; 8];
    key[..password.len()].copy_from_slice(password.as_bytes());
    let cipher = Des::new(&key.map(u8::reverse_bits).into());
    let encipher = |part: &[u8]| {
        let mut block = Block::<Des>::default();
        block.copy_from_slice(part);
        cipher.encrypt_block(&mut block);
        block.to_vec()
    };
    challenge.chunks(8).flat_map(encipher).collect()
}

pub fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

/// Whether the other end has closed the connection, whatever comes before.
pub fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

impl Client {
    /// One that has got in without a password.
    pub fn new(path: &Path) -> Self {
        let mut stream = connect(path);
        assert_eq!(read(&mut stream, 12), b"RFB 003.008\n");
        stream.write_all(b"RFB 003.008\n").unwrap();
        assert_eq!(read(&mut stream, 2), [1, 1]);
        stream.write_all(&[1]).unwrap();
        assert_eq!(read(&mut stream, 4), [0; 4]);
        Self::admitted(stream)
    }

    /// The rest of a handshake.
    pub fn admitted(mut stream: UnixStream) -> Self {
        stream.write_all(&[1]).unwrap();
        let init = read(&mut stream, 24);
        let side = |at: usize| usize::from(u16::from_be_bytes([init[at], init[at + 1]]));
        assert_eq!(init[4..20], XRGB.bytes());
        assert_eq!(init[20..], [0, 0, 0, 4]);
        assert_eq!(read(&mut stream, 4), b"kite");
        let (width, height) = (side(0), side(2));
        Self {
            stream,
            width,
            height,
            format: XRGB,
            picture: vec![[u32::MAX; 3]; width * height],
            zrle: Decompress::new(true),
            tight: Decompress::new(true),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn set_format(&mut self, format: Format) {
        self.format = format;
        self.send(&[&[0; 4][..], &format.bytes()].concat());
    }

    pub fn set_encodings(&mut self, numbers: &[i32]) {
        let mut message = vec![2, 0];
        message.extend((numbers.len() as u16).to_be_bytes());
        message.extend(numbers.iter().flat_map(|it| it.to_be_bytes()));
        self.send(&message);
    }

    pub fn request(&mut self, incremental: bool) {
        let mut message = vec![3, incremental.into(), 0, 0, 0, 0];
        message.extend((self.width as u16).to_be_bytes());
        message.extend((self.height as u16).to_be_bytes());
        self.send(&message);
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes(self.read(2).try_into().unwrap())
    }

    pub fn read(&mut self, len: usize) -> Vec<u8> {
        read(&mut self.stream, len)
    }

    /// Asks for what has changed, or for everything, and takes it.
    pub fn refresh(&mut self, incremental: bool) -> Vec<Part> {
        self.request(incremental);
        self.update()
    }

    /// Takes an update.
    pub fn update(&mut self) -> Vec<Part> {
        assert_eq!(self.read(2), [0, 0]);
        let count = self.short();
        (0..count).map(|_| self.part()).collect()
    }

    fn part(&mut self) -> Part {
        let [x, y, width, height] = [0; 4].map(|_| self.short());
        match i32::from_be_bytes(self.read(4).try_into().unwrap()) {
            CURSOR_SHAPE => self.cursor(x, y, width, height),
            DESKTOP_SIZE => {
                self.resize(width, height);
                Part::Size(width, height)
            }
            EXTENDED_DESKTOP_SIZE => {
                let rest = self.read(20);
                let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
                assert_eq!(rest, [&[1, 0, 0, 0], &[0; 8][..], &sides, &[0; 4]].concat());
                if (usize::from(width), usize::from(height)) != (self.width, self.height) {
                    self.resize(width, height);
                }
                Part::ExtendedSize(x, y, width, height)
            }
            QEMU_EXTENDED_KEY => Part::ExtendedKeys,
            encoding => {
                let [w, h] = [width, height].map(usize::from);
                let pixels = match encoding {
                    0 => self.raw(w * h),
                    16 => self.zrle(w, h),
                    7 => self.tight(w * h),
                    other => panic!("encoding {other} was not asked for"),
                };
                assert_eq!(pixels.len(), w * h);
                for (row, at) in pixels.chunks(w).zip(usize::from(y)..) {
                    let start = at * self.width + usize::from(x);
                    self.picture[start..start + w].copy_from_slice(row);
                }
                Part::Pixels(x, y, width, height)
            }
        }
    }

    fn resize(&mut self, width: u16, height: u16) {
        (self.width, self.height) = (width.into(), height.into());
        self.picture = vec![[u32::MAX; 3]; self.width * self.height];
    }

    fn cursor(&mut self, x: u16, y: u16, width: u16, height: u16) -> Part {
        let size = usize::from(self.format.0 / 8);
        let pixels = self.read(usize::from(width) * usize::from(height) * size);
        let mask = self.read(usize::from(width).div_ceil(8) * usize::from(height));
        let first = pixels.chunks(size).next().map_or([0; 3], |it| self.format.colors(self.format.value(it)));
        Part::Cursor(x, y, width, first, mask.first().is_some_and(|it| it >> 7 != 0))
    }

    fn raw(&mut self, count: usize) -> Vec<[u32; 3]> {
        let size = usize::from(self.format.0 / 8);
        let bytes = self.read(count * size);
        bytes.chunks(size).map(|it| self.format.colors(self.format.value(it))).collect()
    }

    fn zrle(&mut self, width: usize, height: usize) -> Vec<[u32; 3]> {
        let len = u32::from_be_bytes(self.read(4).try_into().unwrap());
        let packed = self.read(len as usize);
        let plain = inflate(&mut self.zrle, &packed);
        let mut rest = &plain[..];
        let Format(bits, depth, _, max, shift) = self.format;
        let used = (0..3).fold(0, |used, at| used | u32::from(max[at]) << shift[at]);
        let is_compact = bits == 32 && depth <= 24 && (used >> 24 == 0 || used & 0xff == 0);
        let size = if is_compact { 3 } else { usize::from(bits / 8) };
        let mut take = |len: usize| {
            let (now, later) = rest.split_at(len);
            rest = later;
            now
        };
        let mut picture = vec![[0; 3]; width * height];
        for top in (0..height).step_by(64) {
            for left in (0..width).step_by(64) {
                let (w, h) = (64.min(width - left), 64.min(height - top));
                let kind = usize::from(take(1)[0]);
                let mut pixels = |count| -> Vec<_> {
                    let colors = |it: &[u8]| self.format.colors(self.format.value(it));
                    take(count * size).chunks(size).map(colors).collect()
                };
                let tile = match kind {
                    0 => pixels(w * h),
                    1 => vec![pixels(1)[0]; w * h],
                    2..=16 => {
                        let palette = pixels(kind);
                        let bits = [1, 2, 4][usize::from(kind > 2) + usize::from(kind > 4)];
                        let stride = (w * bits).div_ceil(8);
                        let rows = take(stride * h);
                        let number = |x: usize, y: usize| {
                            let byte = rows[y * stride + x * bits / 8];
                            usize::from(byte >> (8 - bits - x * bits % 8)) & ((1 << bits) - 1)
                        };
                        (0..w * h).map(|at| palette[number(at % w, at / w)]).collect()
                    }
                    other => panic!("tile of kind {other}"),
                };
                for (row, y) in tile.chunks(w).zip(top..) {
                    picture[y * width + left..y * width + left + w].copy_from_slice(row);
                }
            }
        }
        assert!(rest.is_empty());
        picture
    }

    fn tight(&mut self, count: usize) -> Vec<[u32; 3]> {
        let Format(bits, depth, _, max, _) = self.format;
        let is_rgb = bits == 32 && depth == 24 && max == [255; 3];
        let size = if is_rgb { 3 } else { usize::from(bits / 8) };
        let format = self.format;
        let colors = |it: &[u8]| match is_rgb {
            true => [it[0], it[1], it[2]].map(u32::from),
            false => format.colors(format.value(it)),
        };
        match self.read(1)[0] {
            0x80 => vec![colors(&self.read(size)); count],
            0 => {
                let plain = if count * size < 12 {
                    self.read(count * size)
                } else {
                    let mut len = 0;
                    for place in 0..3 {
                        let byte = usize::from(self.read(1)[0]);
                        len |= (if place < 2 { byte & 0x7f } else { byte }) << (7 * place);
                        if place < 2 && byte & 0x80 == 0 {
                            break;
                        }
                    }
                    let packed = self.read(len);
                    inflate(&mut self.tight, &packed)
                };
                plain.chunks(size).map(colors).collect()
            }
            other => panic!("compression {other:#x}"),
        }
    }
}

pub fn read(stream: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// All of what one rectangle's bytes come to.
fn inflate(stream: &mut Decompress, packed: &[u8]) -> Vec<u8> {
    let (mut plain, start) = (Vec::new(), stream.total_in());
    loop {
        plain.reserve(4096);
        let taken = (stream.total_in() - start) as usize;
        stream.decompress_vec(&packed[taken..], &mut plain, FlushDecompress::Sync).unwrap();
        if (stream.total_in() - start) as usize == packed.len() && plain.len() < plain.capacity() {
            return plain;
        }
    }
}
