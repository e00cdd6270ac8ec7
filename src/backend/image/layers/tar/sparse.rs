//! Sparse files: the archive has only the parts that are not zeros, and a map of where they belong.
//!
//! The map is in the header of GNU's own format, and in blocks behind it; in PAX records (versions 0.0 and 0.1), or in front of the
//! data (1.0).

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

use super::header::{Header, size};
use super::pax::{Sparse, decimal};
use super::{Archive, BLOCK, Piece, cut_short};

/// The size of an offset or a size in GNU's map.
const FIELD: usize = 12;
/// The most pieces of a file.
const PIECES_MAX: usize = 1 << 18;
/// The most digits of a number in a map.
const DIGITS_MAX: usize = 20;

/// Places in a header of GNU's format, or in a block behind it.
pub(super) struct Area<'a> {
    places: &'a [u8],
    /// Whether another block follows.
    goes_on: bool,
}

impl<'a> Area<'a> {
    /// Pairs of fields, and a byte that is zero if they are all.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let places = &bytes[..bytes.len() / (2 * FIELD) * (2 * FIELD)];
        Self { places, goes_on: bytes.get(places.len()).is_some_and(|byte| *byte != 0) }
    }

    /// Adds the places to `pieces`. An empty field ends the list.
    fn add_to(&self, pieces: &mut Vec<Piece>) -> Result<()> {
        for place in self.places.chunks_exact(2 * FIELD) {
            let (offset, len) = place.split_at(FIELD);
            if offset[0] == 0 || len[0] == 0 {
                break;
            }
            pieces.push(Piece { offset: size(offset)?, size: size(len)? });
        }
        ensure!(pieces.len() <= PIECES_MAX, "it has more than {PIECES_MAX} pieces");
        Ok(())
    }
}

/// The size and the pieces of a file with GNU's header.
pub(super) fn of_gnu<R: Read>(archive: &mut Archive<R>, header: &Header) -> Result<(u64, Vec<Piece>)> {
    let (area, size) = header.sparse()?;
    let mut pieces = Vec::new();
    area.add_to(&mut pieces)?;
    let mut goes_on = area.goes_on;
    while goes_on {
        // In front of the data, and not counted in its size.
        let block = archive.whole_block()?.context("the archive is cut short")?;
        // Of the last bytes only one is used.
        let area = Area::new(&block[..BLOCK - 7]);
        area.add_to(&mut pieces)?;
        goes_on = area.goes_on;
    }
    Ok((size, pieces))
}

/// The size and the pieces of a file with PAX records, and `stored` bytes in the archive.
pub(super) fn of_pax<R: Read>(
    archive: &mut Archive<R>,
    sparse: Sparse,
    stored: u64,
) -> Result<(u64, Vec<Piece>)> {
    let map = match (sparse.major, sparse.minor) {
        (None, None) | (Some(0), Some(0 | 1)) => sparse.map,
        (Some(1), Some(0)) => map_in_data(archive)?,
        (major, minor) => {
            let [major, minor] = [major, minor].map(|it| it.map_or("?".to_owned(), |it| it.to_string()));
            bail!("it is sparse in the unknown format {major}.{minor}");
        }
    };
    ensure!(map.len().is_multiple_of(2), "the map of its pieces is cut");
    ensure!(map.len() / 2 <= PIECES_MAX, "it has more than {PIECES_MAX} pieces");
    let pieces = map.chunks_exact(2).map(|pair| Piece { offset: pair[0], size: pair[1] });
    Ok((sparse.size.unwrap_or(stored), pieces.collect()))
}

/// The map in front of the data: lines of how many pairs there are, and of the pairs' numbers; padded to a block.
fn map_in_data<R: Read>(archive: &mut Archive<R>) -> Result<Vec<u64>> {
    let mut block = [0; BLOCK];
    let mut at = BLOCK;
    let mut number = || {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK {
                archive.read_exact(&mut block).map_err(cut_short)?;
                at = 0;
            }
            at += 1;
            match block[at - 1] {
                b'\n' => return decimal(&digits),
                digit if digits.len() < DIGITS_MAX => digits.push(digit),
                _ => bail!("the map of its pieces makes no sense"),
            }
        }
    };
    let count = usize::try_from(number()?).ok().filter(|count| *count <= PIECES_MAX);
    let count = count.with_context(|| format!("it has more than {PIECES_MAX} pieces"))?;
    (0..2 * count).map(|_| number()).collect()
}

/// Checks that the pieces of a file of this size are in order and inside, and that the archive has as many bytes.
pub(super) fn check(pieces: &[Piece], size: u64, stored: u64) -> Result<()> {
    let mut end = 0;
    let mut sum = 0_u64;
    for piece in pieces {
        let piece_end = piece.offset.checked_add(piece.size).filter(|end| *end <= size);
        let piece_end = piece_end.context("a piece of it is behind its end")?;
        ensure!(piece.offset >= end, "pieces of it overlap or are out of order");
        end = piece_end;
        // No more than `size`.
        sum += piece.size;
    }
    ensure!(sum == stored, "its pieces have {sum} bytes, the archive has {stored} of them");
    Ok(())
}
