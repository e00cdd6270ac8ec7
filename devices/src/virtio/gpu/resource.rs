//! Resources: images in the host's memory, and the pieces of the guest's memory behind them.
//!
//! All of them together have a limit, and each has one for its pieces: a guest cannot make the host hold more.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::wire::{Rect, Refusal};
use crate::GuestMemory;
use crate::device::{self, check};
use crate::screen::{PixelMemory, Pixels};

/// The most pixels of all resources: 256 MiB.
pub const MOST_PIXELS: usize = 64 << 20;
/// The most resources.
const MOST_RESOURCES: usize = 1024;
/// The longest side of a resource in pixels.
const MOST_SIDE: u32 = 16384;
/// The most pieces of guest memory behind one resource: a page each, they make up [`crate::screen::MOST`] squared.
pub const MOST_ENTRIES: usize = 16384;
/// The most pieces behind all of them.
const MOST_ENTRIES_IN_ALL: usize = 4 * MOST_ENTRIES;
/// Bytes of a pixel in guest memory.
const PIXEL: usize = 4;

/// All resources.
pub struct Resources {
    all: BTreeMap<u32, Resource>,
    pub most_pixels: usize,
    pixels: usize,
    entries: usize,
}

/// An image of the guest's.
pub struct Resource {
    format: Format,
    pub width: u32,
    height: u32,
    pub pixels: Arc<PixelMemory>,
    backing: Option<Backing>,
}

/// A resource's saved state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedResource {
    id: u32,
    format: u32,
    width: u32,
    height: u32,
    /// Address and length of each piece.
    backing: Option<Vec<(u64, u32)>>,
}

impl Resources {
    /// None, which will have at most so many pixels.
    pub fn new(most_pixels: usize) -> Self {
        Self { all: BTreeMap::new(), most_pixels, pixels: 0, entries: 0 }
    }

    pub fn create(&mut self, id: u32, format: u32, width: u32, height: u32) -> Result<(), Refusal> {
        if id == 0 || self.all.contains_key(&id) {
            return Err(Refusal::InvalidResource);
        }
        let format = Format::of(format).ok_or(Refusal::InvalidParameter)?;
        let sides = 1..=MOST_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(Refusal::InvalidParameter);
        }
        let area = width as usize * height as usize;
        if area > self.most_pixels - self.pixels || self.all.len() == MOST_RESOURCES {
            return Err(Refusal::OutOfMemory);
        }
        let pixels = Arc::new(PixelMemory::new(area).map_err(|_| Refusal::OutOfMemory)?);
        self.pixels += area;
        self.all.insert(id, Resource { format, width, height, pixels, backing: None });
        Ok(())
    }

    pub fn remove(&mut self, id: u32) -> Result<(), Refusal> {
        let gone = self.all.remove(&id).ok_or(Refusal::InvalidResource)?;
        self.pixels -= gone.width as usize * gone.height as usize;
        self.entries -= gone.entries();
        Ok(())
    }

    pub fn get(&self, id: u32) -> Result<&Resource, Refusal> {
        self.all.get(&id).ok_or(Refusal::InvalidResource)
    }

    /// Puts pieces of guest memory behind a resource that has none.
    pub fn attach(
        &mut self,
        id: u32,
        memory: &GuestMemory,
        entries: impl FnOnce() -> Result<Vec<(GuestAddress, u32)>, Refusal>,
    ) -> Result<(), Refusal> {
        let resource = self.all.get_mut(&id).ok_or(Refusal::InvalidResource)?;
        if resource.backing.is_some() {
            return Err(Refusal::Unspecified);
        }
        let backing = Backing::new(&entries()?);
        if !backing.is_in(memory) {
            return Err(Refusal::InvalidParameter);
        }
        if backing.parts.len() > MOST_ENTRIES_IN_ALL - self.entries {
            return Err(Refusal::OutOfMemory);
        }
        self.entries += backing.parts.len();
        resource.backing = Some(backing);
        Ok(())
    }

    pub fn detach(&mut self, id: u32) -> Result<(), Refusal> {
        let resource = self.all.get_mut(&id).ok_or(Refusal::InvalidResource)?;
        self.entries -= resource.entries();
        resource.backing = None;
        Ok(())
    }

    /// Transfers all of each resource that has enough memory behind it.
    pub fn refresh(&self, memory: &GuestMemory) {
        for resource in self.all.values() {
            let rect = Rect { x: 0, y: 0, width: resource.width, height: resource.height };
            // One with less memory behind it never was transferred as a whole.
            let _ = resource.transfer(memory, rect, 0);
        }
    }

    pub fn save(&self) -> Vec<SavedResource> {
        let parts = |backing: &Backing| backing.parts.iter().map(|it| (it.address.0, it.len)).collect();
        let save = |(id, it): (&u32, &Resource)| SavedResource {
            id: *id,
            format: it.format as u32,
            width: it.width,
            height: it.height,
            backing: it.backing.as_ref().map(parts),
        };
        self.all.iter().map(save).collect()
    }

    /// Resources as they were saved, black. Whether their pieces are guest memory is seen when they are read.
    pub fn load(saved: Vec<SavedResource>) -> Result<Self, device::Error> {
        let mut this = Self::new(MOST_PIXELS);
        for SavedResource { id, format, width, height, backing } in saved {
            check(this.create(id, format, width, height).is_ok(), "resource")?;
            let Some(parts) = backing else { continue };
            let most = MOST_ENTRIES.min(MOST_ENTRIES_IN_ALL - this.entries);
            check(parts.len() <= most, "number of pieces behind a resource")?;
            let parts: Vec<_> = parts.iter().map(|(address, len)| (GuestAddress(*address), *len)).collect();
            let backing = Backing::new(&parts);
            this.entries += backing.parts.len();
            this.all.get_mut(&id).expect("it has just been created").backing = Some(backing);
        }
        Ok(this)
    }
}

impl Resource {
    fn entries(&self) -> usize {
        self.backing.as_ref().map_or(0, |backing| backing.parts.len())
    }

    /// The number of the first pixel of `rect`, which has to lie within the resource and to have pixels.
    pub fn start_of(&self, rect: Rect) -> Result<usize, Refusal> {
        let within = |start: u32, len: u32, side: u32| {
            len > 0 && start.checked_add(len).is_some_and(|end| end <= side)
        };
        if within(rect.x, rect.width, self.width) && within(rect.y, rect.height, self.height) {
            Ok(rect.y as usize * self.width as usize + rect.x as usize)
        } else {
            Err(Refusal::InvalidParameter)
        }
    }

    /// Copies `rect` from the guest's memory: its first pixel is at `offset` there, and rows are as long as the resource's.
    pub fn transfer(&self, memory: &GuestMemory, rect: Rect, offset: u64) -> Result<(), Refusal> {
        let start = self.start_of(rect)?;
        let backing = self.backing.as_ref().ok_or(Refusal::Unspecified)?;
        let stride = self.width as usize * PIXEL;
        let mut row = vec![0; rect.width as usize * PIXEL];
        let len = (rect.height as usize - 1) * stride + row.len();
        let offset = usize::try_from(offset).map_err(|_| Refusal::InvalidParameter)?;
        if offset.checked_add(len).is_none_or(|end| end > backing.len) {
            return Err(Refusal::InvalidParameter);
        }
        for y in 0..rect.height as usize {
            backing.read(memory, offset + y * stride, &mut row);
            let (pixels, _) = row.as_chunks();
            self.pixels
                .write(start + y * self.width as usize, pixels.iter().map(|it| self.format.pixel(*it)));
        }
        Ok(())
    }

    /// All pixels of a resource whose sides are `side` long.
    pub fn square(&self, side: u32) -> Option<Vec<u32>> {
        if [self.width, self.height] != [side; 2] {
            return None;
        }
        let mut pixels = vec![0; side as usize * side as usize];
        self.pixels.read(0, &mut pixels);
        Some(pixels)
    }
}

/// Pieces of guest memory, in order.
struct Backing {
    parts: Vec<Part>,
    len: usize,
}

struct Part {
    /// Where it is in the whole.
    offset: usize,
    address: GuestAddress,
    len: u32,
}

impl Backing {
    /// At most [`MOST_ENTRIES`] of 4 GiB: the lengths do not overflow.
    fn new(entries: &[(GuestAddress, u32)]) -> Self {
        let mut offset = 0;
        let parts = entries.iter().map(|&(address, len)| {
            let part = Part { offset, address, len };
            offset += len as usize;
            part
        });
        Self { parts: parts.collect(), len: offset }
    }

    fn is_in(&self, memory: &GuestMemory) -> bool {
        self.parts.iter().all(|it| it.len == 0 || memory.check_range(it.address, it.len as usize))
    }

    /// Reads from `offset` on; what is not there, or not memory, is 0.
    fn read(&self, memory: &GuestMemory, offset: usize, into: &mut [u8]) {
        into.fill(0);
        let first = self.parts.partition_point(|it| it.offset + it.len as usize <= offset);
        let mut done = 0;
        for part in &self.parts[first..] {
            let skip = (offset + done).saturating_sub(part.offset);
            let len = (part.len as usize - skip).min(into.len() - done);
            if let Some(at) = part.address.0.checked_add(skip as u64) {
                // It fails only for what was loaded, and is black then.
                let _ = memory.read_slice(&mut into[done..done + len], GuestAddress(at));
            }
            done += len;
            if done == into.len() {
                break;
            }
        }
    }
}

/// The order of a pixel's bytes in memory. `A` is alpha, `X` nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Format {
    B8G8R8A8 = 1,
    B8G8R8X8 = 2,
    A8R8G8B8 = 3,
    X8R8G8B8 = 4,
    R8G8B8A8 = 67,
    X8B8G8R8 = 68,
    A8B8G8R8 = 121,
    R8G8B8X8 = 134,
}

impl Format {
    fn of(number: u32) -> Option<Self> {
        use Format::*;
        let all = [B8G8R8A8, B8G8R8X8, A8R8G8B8, X8R8G8B8, R8G8B8A8, X8B8G8R8, A8B8G8R8, R8G8B8X8];
        all.into_iter().find(|it| *it as u32 == number)
    }

    /// The pixel as `0xAARRGGBB`.
    fn pixel(self, bytes: [u8; PIXEL]) -> u32 {
        let [a, b, c, d] = bytes;
        u32::from_be_bytes(match self {
            Self::B8G8R8A8 | Self::B8G8R8X8 => [d, c, b, a],
            Self::A8R8G8B8 | Self::X8R8G8B8 => [a, b, c, d],
            Self::R8G8B8A8 | Self::R8G8B8X8 => [d, a, b, c],
            Self::A8B8G8R8 | Self::X8B8G8R8 => [a, d, c, b],
        })
    }
}
