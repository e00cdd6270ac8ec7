//! The superblock (`struct erofs_super_block`), 1 KiB behind the image's beginning.

use super::{BLOCK, BLOCK_BITS};

/// Where the superblock is.
pub(super) const OFFSET: usize = 1024;
/// What it begins with.
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum.
const CHECKSUM: u32 = 1;
/// Inodes' times are when files were last changed.
const MTIME: u32 = 2;
/// Where the checksum is in the superblock.
const CHECKSUM_OFFSET: usize = 4;

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The root directory's number.
    pub(super) root: u16,
    /// How many inodes there are.
    pub(super) inodes: u64,
    /// How many blocks the image has.
    pub(super) blocks: u32,
    /// The block that inodes' numbers count from.
    pub(super) metadata: u32,
    /// The file system's UUID.
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The image's first block.
    pub(super) fn block(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let mut put = |offset: usize, bytes: &[u8]| {
            block[OFFSET + offset..][..bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(CHECKSUM | MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.metadata.to_le_bytes());
        put(48, &self.uuid);
        let checksum = checksum(&block).to_le_bytes();
        block[OFFSET + CHECKSUM_OFFSET..][..checksum.len()].copy_from_slice(&checksum);
        block
    }
}

/// The checksum of the first block from the superblock on, which has zeros in the checksum's place: CRC-32C that begins with
/// all ones and is not inverted at the end, as `erofs_superblock_csum_verify` has it.
pub(super) fn checksum(block: &[u8]) -> u32 {
    /// The polynomial, reflected.
    const CASTAGNOLI: u32 = 0x82f6_3b78;
    block[OFFSET..].iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (CASTAGNOLI & (crc & 1).wrapping_neg()))
    })
}
