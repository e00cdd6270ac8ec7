//! Encodings of rectangles: Raw and ZRLE (RFC 6143 §7.7), Tight with zlib (the community's rfbproto), and what is no picture
//! but sent as if it were (§7.8).

use devices::screen::{CURSOR, Cursor, Size};
use flate2::{Compress, Compression, FlushCompress};

use super::pixel::{PixelFormat, PixelWriter};

/// Raw pixels.
pub const RAW: i32 = 0;
/// Pixels, their zlib stream, and single colours.
pub const TIGHT: i32 = 7;
/// Tiles in a zlib stream.
pub const ZRLE: i32 = 16;
/// The pointer's picture, which the viewer draws.
pub const CURSOR_SHAPE: i32 = -239;
/// The screen has another size.
pub const DESKTOP_SIZE: i32 = -223;
/// A key event may have a keyboard's own code.
pub const QEMU_EXTENDED_KEY: i32 = -258;
/// The screen has a size, and a viewer may ask for another.
pub const EXTENDED_DESKTOP_SIZE: i32 = -308;

/// The longest row of a rectangle in Tight.
pub const TIGHT_WIDTH_MAX: u32 = 2048;
/// Less than that is not compressed in Tight.
const TIGHT_COMPRESSED_MIN: usize = 12;
/// Tight: all of the rectangle has one colour.
const TIGHT_FILL: u8 = 0x80;
/// Tight: pixels, through the first stream.
const TIGHT_BASIC: u8 = 0;
/// The side of ZRLE's tiles.
const TILE: usize = 64;
/// The most colours that ZRLE numbers in packed pixels.
const PALETTE_MAX: usize = 16;
/// By how much a buffer grows while it is compressed into.
const CHUNK: usize = 16 << 10;
/// The colours of a pixel of the screen.
const COLORS: u32 = 0xff_ffff;

/// How pixels are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// [`RAW`].
    Raw,
    /// [`TIGHT`].
    Tight,
    /// [`ZRLE`].
    Zrle,
}

impl Encoding {
    /// The one with this number, if kite has it.
    pub fn of(number: i32) -> Option<Self> {
        [Self::Raw, Self::Tight, Self::Zrle].into_iter().find(|it| it.number() == number)
    }

    /// Its number.
    pub fn number(self) -> i32 {
        match self {
            Self::Raw => RAW,
            Self::Tight => TIGHT,
            Self::Zrle => ZRLE,
        }
    }
}

/// A rectangle's place, or what takes its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// From the left.
    pub x: u16,
    /// From the top.
    pub y: u16,
    /// Its width.
    pub width: u16,
    /// Its height.
    pub height: u16,
}

/// Begins a rectangle.
pub fn header(rect: Rect, number: i32, out: &mut Vec<u8>) {
    for field in [rect.x, rect.y, rect.width, rect.height] {
        out.extend(field.to_be_bytes());
    }
    out.extend(number.to_be_bytes());
}

/// What rectangles are made in, one after another: a picture allocates once.
#[derive(Default)]
pub struct Workspace {
    /// The rectangle's pixels, row by row.
    pub pixels: Vec<u32>,
    /// What of them is compressed.
    plain: Vec<u8>,
}

/// Compresses for one viewer: its streams go on from rectangle to rectangle.
#[derive(Default)]
pub struct Encoder {
    zrle: Option<Compress>,
    tight: Option<Compress>,
}

impl Encoder {
    /// Appends the pixels of `workspace`, rows of `width`, to `out`.
    pub fn encode(
        &mut self,
        encoding: Encoding,
        format: PixelFormat,
        width: usize,
        workspace: &mut Workspace,
        out: &mut Vec<u8>,
    ) {
        let Workspace { pixels, plain } = workspace;
        plain.clear();
        match encoding {
            Encoding::Raw => write(&format.pixels(), pixels, out),
            Encoding::Zrle => {
                write_tiles(&format.compact_pixels(), pixels, width, plain);
                let start = out.len();
                out.extend([0; 4]);
                compress(&mut self.zrle, plain, out);
                let len = (out.len() - start - 4) as u32;
                out[start..start + 4].copy_from_slice(&len.to_be_bytes());
            }
            Encoding::Tight => self.encode_tight(&format.tight_pixels(), pixels, plain, out),
        }
    }

    fn encode_tight(&mut self, writer: &PixelWriter, pixels: &[u32], plain: &mut Vec<u8>, out: &mut Vec<u8>) {
        let first = pixels.first().copied().unwrap_or_default();
        if pixels.iter().all(|it| it & COLORS == first & COLORS) {
            out.push(TIGHT_FILL);
            return writer.write(first, out);
        }
        out.push(TIGHT_BASIC);
        write(writer, pixels, plain);
        if plain.len() < TIGHT_COMPRESSED_MIN {
            return out.append(plain);
        }
        let start = out.len();
        compress(&mut self.tight, plain, out);
        // Seven bits a byte, the lowest first; the third has eight.
        let len = out.len() - start;
        let bytes = [len as u8 | 0x80, (len >> 7) as u8 | 0x80, (len >> 14) as u8];
        match len {
            ..0x80 => out.insert(start, len as u8),
            0x80..0x4000 => _ = out.splice(start..start, [bytes[0], bytes[1] & 0x7f]),
            _ => _ = out.splice(start..start, bytes),
        }
    }
}

fn write(writer: &PixelWriter, pixels: &[u32], out: &mut Vec<u8>) {
    out.reserve(pixels.len() * writer.size());
    pixels.iter().for_each(|pixel| writer.write(*pixel, out));
}

/// Appends all of `data` to `out`, compressed so far that the viewer can read it.
fn compress(stream: &mut Option<Compress>, data: &[u8], out: &mut Vec<u8>) {
    let stream = stream.get_or_insert_with(|| Compress::new(Compression::fast(), true));
    let start = stream.total_in();
    loop {
        out.reserve(CHUNK);
        let taken = (stream.total_in() - start) as usize;
        stream
            .compress_vec(&data[taken..], out, FlushCompress::Sync)
            .expect("a stream that isn't finished takes data");
        let taken = (stream.total_in() - start) as usize;
        if taken == data.len() && out.len() < out.capacity() {
            return;
        }
    }
}

/// Appends the tiles of ZRLE: one colour, a palette with packed numbers, or pixels.
fn write_tiles(writer: &PixelWriter, pixels: &[u32], width: usize, out: &mut Vec<u8>) {
    let height = pixels.len() / width.max(1);
    let mut tile = Vec::with_capacity(TILE * TILE);
    for top in (0..height).step_by(TILE) {
        for left in (0..width).step_by(TILE) {
            let columns = left..(left + TILE).min(width);
            tile.clear();
            for y in top..(top + TILE).min(height) {
                let row = &pixels[y * width..(y + 1) * width];
                tile.extend(row[columns.clone()].iter().map(|pixel| pixel & COLORS));
            }
            write_tile(writer, &tile, columns.len(), out);
        }
    }
}

fn write_tile(writer: &PixelWriter, tile: &[u32], width: usize, out: &mut Vec<u8>) {
    let Some(palette) = palette(tile) else {
        out.push(0);
        return write(writer, tile, out);
    };
    out.push(palette.len() as u8);
    write(writer, &palette, out);
    let bits = match palette.len() {
        1 => return,
        2 => 1,
        3..=4 => 2,
        _ => 4,
    };
    for row in tile.chunks(width) {
        for pixels in row.chunks(8 / bits) {
            let byte = pixels.iter().zip(1..).fold(0, |byte, (pixel, place)| {
                let number = palette.iter().position(|it| it == pixel).unwrap_or_default();
                byte | (number as u8) << (8 - place * bits)
            });
            out.push(byte);
        }
    }
}

/// The colours of a tile, if they are few.
fn palette(tile: &[u32]) -> Option<Vec<u32>> {
    let mut palette = Vec::with_capacity(PALETTE_MAX);
    for pixel in tile {
        if !palette.contains(pixel) {
            if palette.len() == PALETTE_MAX {
                return None;
            }
            palette.push(*pixel);
        }
    }
    Some(palette)
}

/// Appends the pointer's picture, or none.
pub fn write_cursor(cursor: Option<&Cursor>, format: PixelFormat, out: &mut Vec<u8>) {
    let Some(cursor) = cursor else {
        return header(Rect { x: 0, y: 0, width: 0, height: 0 }, CURSOR_SHAPE, out);
    };
    let side = CURSOR as u16;
    let [x, y] = [cursor.hot_x, cursor.hot_y].map(|it| it.min(CURSOR - 1) as u16);
    header(Rect { x, y, width: side, height: side }, CURSOR_SHAPE, out);
    let pixel = |at: usize| cursor.pixels.get(at).copied().unwrap_or_default();
    let writer = format.pixels();
    let area = (CURSOR * CURSOR) as usize;
    (0..area).for_each(|at| writer.write(pixel(at), out));
    for first in (0..area).step_by(8) {
        let is_opaque = |bit: usize| u8::from(pixel(first + bit) >> 31 != 0);
        out.push((0..8).fold(0, |byte, bit| byte << 1 | is_opaque(bit)));
    }
}

/// Appends the screen's size as a list of one screen. `reason` is who wanted it, and `status` whether that went well.
pub fn write_extended_size(size: Size, reason: u16, status: u16, out: &mut Vec<u8>) {
    let [width, height] = [size.width as u16, size.height as u16];
    header(Rect { x: reason, y: status, width, height }, EXTENDED_DESKTOP_SIZE, out);
    out.extend([1, 0, 0, 0]);
    out.extend([0; 8]);
    for side in [width, height] {
        out.extend(side.to_be_bytes());
    }
    out.extend([0; 4]);
}
