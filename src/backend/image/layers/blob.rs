//! A layer's blob, unpacked: decompressed, and checked against what was said of it.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::LayerBlob;
use crate::backend::image::blob::Compression;
use crate::backend::image::digest::{Digest, Hasher};

/// How much is read at once.
const BUFFER: usize = 128 << 10;
/// What a zstd frame begins with that holds nothing, but for the lowest four bits (RFC 8878 §3.1.2).
const SKIPPABLE: u32 = 0x184d_2a50;

/// The archive in a blob.
pub(super) struct Content<'a>(BufReader<Unpacked<'a>>);

impl<'a> Content<'a> {
    /// What `layer` has. `left` counts down what all layers may have, in bytes.
    pub(super) fn new(
        layer: LayerBlob<'a>,
        window: u64,
        left: &'a Cell<u64>,
        progress: &'a dyn Fn(u64),
    ) -> Self {
        let hash = |digest: Digest| Expected { hasher: Hasher::new(digest.algorithm()), digest };
        // Without compression it is hashed once.
        let digest = layer.digest.filter(|digest| *digest != layer.diff_id);
        let blob = Blob { reader: layer.reader, expected: digest.map(hash), progress };
        let blob = BufReader::with_capacity(BUFFER, blob);
        let decoder = match layer.compression {
            Compression::None => Decoder::None(blob),
            Compression::Gzip => Decoder::Gzip(MultiGzDecoder::new(blob)),
            Compression::Zstd => Decoder::Zstd(Box::new(Frames::new(blob, window))),
        };
        let unpacked = Unpacked { decoder, expected: hash(layer.diff_id), left };
        Self(BufReader::with_capacity(BUFFER, unpacked))
    }

    /// Reads what follows the archive, and checks the digests.
    ///
    /// # Errors
    /// The rest cannot be read, or the layer is not what its digests say.
    pub(super) fn finish(mut self) -> Result<()> {
        io::copy(&mut self.0, &mut io::sink())?;
        let unpacked = self.0.into_inner();
        unpacked.expected.check().context("what is in it")?;
        let mut blob = unpacked.decoder.into_inner().into_inner();
        if io::copy(&mut blob, &mut io::sink())? > 0 {
            bail!("something follows the compressed data");
        }
        blob.expected.map_or(Ok(()), Expected::check)
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// What is hashed, and what should come out.
struct Expected {
    hasher: Hasher,
    digest: Digest,
}

impl Expected {
    fn check(self) -> Result<()> {
        self.digest.check_is(&self.hasher.finish())
    }
}

/// A blob's bytes, as they are.
struct Blob<'a> {
    reader: Box<dyn Read + 'a>,
    expected: Option<Expected>,
    progress: &'a dyn Fn(u64),
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buffer)?;
        if let Some(expected) = &mut self.expected {
            expected.hasher.update(&buffer[..len]);
        }
        (self.progress)(len as u64);
        Ok(len)
    }
}

/// A blob's bytes, decompressed.
struct Unpacked<'a> {
    decoder: Decoder<BufReader<Blob<'a>>>,
    expected: Expected,
    left: &'a Cell<u64>,
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.decoder.read(buffer)?;
        let left = self.left.get().checked_sub(len as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other("the layers are larger than is allowed, unpacked"))?);
        self.expected.hasher.update(&buffer[..len]);
        Ok(len)
    }
}

enum Decoder<R> {
    None(R),
    Gzip(MultiGzDecoder<R>),
    Zstd(Box<Frames<R>>),
}

impl<R> Decoder<R> {
    fn into_inner(self) -> R {
        match self {
            Self::None(inner) => inner,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(frames) => frames.inner,
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = |what: &'static str| {
            move |error: io::Error| io::Error::new(error.kind(), format!("cannot unpack {what}: {error}"))
        };
        match self {
            Self::None(inner) => inner.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer).map_err(damaged("gzip")),
            Self::Zstd(frames) => frames.read(buffer).map_err(damaged("zstd")),
        }
    }
}

/// The frames of a zstd stream, one behind the other. The crate reads one.
struct Frames<R> {
    inner: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(inner: R, window: u64) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(window);
        Self { inner, decoder, is_in_frame: false }
    }

    /// Goes to the next frame that may hold something. Returns whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.inner.fill_buf()?.is_empty() {
            let mut magic = [0; 4];
            self.inner.read_exact(&mut magic)?;
            if u32::from_le_bytes(magic) & !0xf != SKIPPABLE {
                let frame = magic.as_slice().chain(&mut self.inner);
                self.decoder.reset(frame).map_err(io::Error::other)?;
                self.is_in_frame = true;
                return Ok(true);
            }
            let mut len = [0; 4];
            self.inner.read_exact(&mut len)?;
            let len = u64::from(u32::from_le_bytes(len));
            if io::copy(&mut (&mut self.inner).take(len), &mut io::sink())? < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(false)
    }

    /// Checks what the frame says of its content, at its end.
    fn end(&mut self) -> io::Result<()> {
        self.is_in_frame = false;
        let said = self.decoder.get_checksum_from_data();
        if said.is_some() && said != self.decoder.get_calculated_checksum() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame has another checksum"));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() && (self.is_in_frame || self.begin()?) {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.inner, one).map_err(io::Error::other)?;
            }
            let len = self.decoder.read(buffer)?;
            if len > 0 {
                return Ok(len);
            }
            self.end()?;
        }
        Ok(0)
    }
}
