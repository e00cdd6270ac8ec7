//! Commands and answers as they lie in memory (virtio 1.2 §5.7.6.7 to §5.7.6.10): little endian, each field of 32 bits or
//! two such words.

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::super::Buffers;
use super::edid;
use super::resource::MOST_ENTRIES;
use crate::GuestMemory;
use crate::screen::Size;

/// What the driver asks for.
pub mod command {
    pub const GET_DISPLAY_INFO: u32 = 0x100;
    pub const RESOURCE_CREATE_2D: u32 = 0x101;
    pub const RESOURCE_UNREF: u32 = 0x102;
    pub const SET_SCANOUT: u32 = 0x103;
    pub const RESOURCE_FLUSH: u32 = 0x104;
    pub const TRANSFER_TO_HOST_2D: u32 = 0x105;
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x106;
    pub const RESOURCE_DETACH_BACKING: u32 = 0x107;
    pub const GET_EDID: u32 = 0x10a;
    pub const UPDATE_CURSOR: u32 = 0x300;
}

/// What it is answered.
pub mod response {
    pub const OK_NODATA: u32 = 0x1100;
    pub const OK_DISPLAY_INFO: u32 = 0x1101;
    pub const OK_EDID: u32 = 0x1104;
}

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    Unspecified = 0x1200,
    OutOfMemory = 0x1201,
    InvalidScanout = 0x1202,
    InvalidResource = 0x1203,
    InvalidParameter = 0x1205,
}

/// VIRTIO_GPU_FLAG_FENCE.
const FENCE: u32 = 1;
/// The length of `virtio_gpu_ctrl_hdr` in bytes.
const HEADER: usize = 24;
/// VIRTIO_GPU_MAX_SCANOUTS.
const SCANOUTS: usize = 16;
/// The length of an answer's room for EDID in bytes.
const EDID_ROOM: usize = 1024;

/// What every command begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    pub command: u32,
    flags: u32,
    fence: [u32; 2],
    context: u32,
}

impl Header {
    /// The header; none if the command is shorter than that.
    pub fn read(memory: &GuestMemory, readable: &Buffers) -> Option<Self> {
        let [command, flags, low, high, context, _] = words(memory, readable, 0)?;
        Some(Self { command, flags, fence: [low, high], context })
    }

    /// An answer: a fenced command's has its fence.
    pub fn answer(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let fenced = self.flags & FENCE != 0;
        let [low, high] = if fenced { self.fence } else { [0; 2] };
        let context = if fenced { self.context } else { 0 };
        let mut bytes = bytes(&[kind, self.flags & FENCE, low, high, context, 0]);
        bytes.extend_from_slice(body);
        bytes
    }
}

/// What follows a command's header.
pub struct Body<'a> {
    pub memory: &'a GuestMemory,
    readable: &'a Buffers,
}

impl<'a> Body<'a> {
    pub fn new(memory: &'a GuestMemory, readable: &'a Buffers) -> Self {
        Self { memory, readable }
    }

    /// Words from `offset` on.
    pub fn words<const N: usize>(&self, offset: usize) -> Result<[u32; N], Refusal> {
        words(self.memory, self.readable, HEADER + offset).ok_or(Refusal::InvalidParameter)
    }

    /// The pieces of guest memory that RESOURCE_ATTACH_BACKING lists: address and length each.
    pub fn entries(&self, count: u32) -> Result<Vec<(GuestAddress, u32)>, Refusal> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if !(1..=MOST_ENTRIES).contains(&count) {
            return Err(Refusal::InvalidParameter);
        }
        let mut bytes = vec![0; 16 * count];
        if self.readable.read(self.memory, HEADER + 8, &mut bytes) != bytes.len() {
            return Err(Refusal::InvalidParameter);
        }
        let (entries, _) = bytes.as_chunks::<16>();
        let entry = |bytes: &[u8; 16]| {
            let value = u128::from_le_bytes(*bytes);
            (GuestAddress(value as u64), (value >> 64) as u32)
        };
        Ok(entries.iter().map(entry).collect())
    }
}

/// A part of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rect {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// `virtio_gpu_resp_display_info` behind its header: the only scanout has `size`.
pub fn display_info(size: Size) -> Vec<u8> {
    let mut bytes = bytes(&[0, 0, size.width, size.height, 1, 0]);
    bytes.resize(SCANOUTS * bytes.len(), 0);
    bytes
}

/// `virtio_gpu_resp_edid` behind its header.
pub fn edid(block: &[u8; edid::LEN]) -> Vec<u8> {
    let mut bytes = bytes(&[edid::LEN as u32, 0]);
    bytes.extend_from_slice(block);
    bytes.resize(8 + EDID_ROOM, 0);
    bytes
}

/// Little-endian words of a chain, from `offset` on; none if it is shorter.
fn words<const N: usize>(memory: &GuestMemory, readable: &Buffers, offset: usize) -> Option<[u32; N]> {
    let mut bytes = [[0; 4]; N];
    let bytes_read = readable.read(memory, offset, bytes.as_flattened_mut());
    (bytes_read == 4 * N).then(|| bytes.map(u32::from_le_bytes))
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
