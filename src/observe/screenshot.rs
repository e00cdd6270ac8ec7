//! A picture of the screen in a file (PNG, Third Edition): eight bits each of red, green and blue.

use std::io::{self, Write};
use std::path::Path;

use devices::screen::Surface;
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use crate::host::atomic_file;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Writes what a surface shows now to the file at `path`.
///
/// # Errors
/// The file cannot be written.
pub fn write(surface: &Surface, path: &Path) -> anyhow::Result<()> {
    atomic_file::write(path, |file| encode(surface, file))
}

fn encode(surface: &Surface, to: &mut dyn Write) -> io::Result<()> {
    let size = surface.size();
    to.write_all(SIGNATURE)?;
    // Width, height, eight bits a sample, three samples, and the only ways to compress, filter and order there are.
    let header = [&size.width.to_be_bytes()[..], &size.height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    chunk(*b"IHDR", &header, to)?;
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::fast());
    let mut row = vec![0; size.width as usize];
    for y in 0..size.height {
        surface.read(0, y, &mut row);
        // Each row begins with its filter: none.
        let mut bytes = vec![0];
        bytes.extend(row.iter().flat_map(|pixel| {
            let [_, red, green, blue] = pixel.to_be_bytes();
            [red, green, blue]
        }));
        rows.write_all(&bytes)?;
    }
    chunk(*b"IDAT", &rows.finish()?, to)?;
    chunk(*b"IEND", &[], to)
}

fn chunk(kind: [u8; 4], data: &[u8], to: &mut dyn Write) -> io::Result<()> {
    let mut crc = Crc::new();
    crc.update(&kind);
    crc.update(data);
    // A picture of the largest screen is far from the limit, 2 GiB.
    to.write_all(&(data.len() as u32).to_be_bytes())?;
    to.write_all(&kind)?;
    to.write_all(data)?;
    to.write_all(&crc.sum().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use devices::screen::{PixelMemory, Size};
    use flate2::read::ZlibDecoder;

    use super::*;

    #[test]
    fn a_picture_has_every_pixel_in_chunks_with_their_sums() {
        let pixels = PixelMemory::new(6).unwrap();
        pixels.write(0, [0xff01_0203, 0x0004_0506, 0, 0x00ff_ffff, 0x0000_00ff, 7].into_iter());
        let surface = Surface::new(Size { width: 2, height: 2 }, 0, 3, Arc::new(pixels));
        let mut png = Vec::new();
        encode(&surface, &mut png).unwrap();
        let mut rest = png.strip_prefix(SIGNATURE).unwrap();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let mut crc = Crc::new();
            crc.update(&rest[4..8 + len]);
            assert_eq!(rest[8 + len..12 + len], crc.sum().to_be_bytes());
            chunks.push((&rest[4..8], &rest[8..8 + len]));
            rest = &rest[12 + len..];
        }
        let [(b"IHDR", header), (b"IDAT", data), (b"IEND", [])] = chunks[..] else { panic!("{chunks:?}") };
        assert_eq!(header, [0, 0, 0, 2, 0, 0, 0, 2, 8, 2, 0, 0, 0]);
        let mut rows = Vec::new();
        ZlibDecoder::new(data).read_to_end(&mut rows).unwrap();
        assert_eq!(rows, [0, 1, 2, 3, 4, 5, 6, 0, 255, 255, 255, 0, 0, 255]);
    }
}
