//! The graphics card (virtio 1.2 §5.7), in two dimensions: the guest draws in its own memory, and says what to show.
//!
//! A resource is an image in the host's memory, into which the guest transfers what it has drawn in its own. It shows one
//! of them on the only scanout, and flushes what has changed. Commands are carried out in order, each before the next: a
//! fence is reached when its command is answered.

mod edid;
mod resource;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::unistd::read;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_GPU;

use super::{Buffers, Chain, Error, Kind, Queues, Served, Source, VirtioDevice};
use crate::GuestMemory;
use crate::device::{self, State, check};
use crate::screen::{CURSOR, Cursor, Screen, Size, Surface};
use resource::{MOST_PIXELS, Resources, SavedResource};
use wire::{Body, Header, Rect, Refusal, command, response};

/// What all graphics cards have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_GPU, module: "virtio_gpu" };
/// VIRTIO_GPU_F_EDID.
const EDID: u64 = 1 << 1;
/// The events of the configuration: VIRTIO_GPU_EVENT_DISPLAY.
const EVENT_DISPLAY: u8 = 1;
/// Where the configuration has `events_clear`.
const EVENTS_CLEAR: u64 = 4;
const CONTROL: usize = 0;

/// The graphics card.
pub struct Gpu {
    screen: Arc<Screen>,
    resources: Resources,
    scanout: Option<Scanout>,
    cursor: Option<CursorState>,
    /// `events_read`, `events_clear`, `num_scanouts` and `num_capsets`, le32 each.
    config: [u8; 16],
    /// The state has been loaded: what resources look like is in the guest's memory.
    stale: bool,
}

/// What is shown.
struct Scanout {
    resource: u32,
    rect: Rect,
    surface: Arc<Surface>,
}

/// What the cursor was set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorState {
    resource: u32,
    hot_x: u32,
    hot_y: u32,
}

/// The guest-visible state, and what was shown. What resources look like is transferred anew.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    events: u8,
    resources: Vec<SavedResource>,
    scanout: Option<SavedScanout>,
    cursor: Option<CursorState>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedScanout {
    resource: u32,
    rect: Rect,
}

impl Gpu {
    /// A card that shows on `screen`.
    pub fn new(screen: Arc<Screen>) -> Self {
        let mut config = [0; 16];
        config[8] = 1;
        let resources = Resources::new(MOST_PIXELS);
        Self { screen, resources, scanout: None, cursor: None, config, stale: false }
    }

    /// Carries out a command; returns the length of the answer.
    fn control(&mut self, memory: &GuestMemory, chain: &Chain) -> u32 {
        let (header, body) = (Header::read(memory, &chain.readable), Body::new(memory, &chain.readable));
        let answer = match header.map_or(Err(Refusal::Unspecified), |it| self.command(it.command, &body)) {
            Ok((kind, bytes)) => header.unwrap_or_default().answer(kind, &bytes),
            Err(refusal) => header.unwrap_or_default().answer(refusal as u32, &[]),
        };
        chain.writable.write(memory, 0, &answer) as u32
    }

    /// Carries out a command; returns the kind of the answer and what follows its header.
    fn command(&mut self, command: u32, body: &Body<'_>) -> Result<(u32, Vec<u8>), Refusal> {
        match command {
            command::GET_DISPLAY_INFO => {
                return Ok((response::OK_DISPLAY_INFO, wire::display_info(self.screen.wish())));
            }
            command::GET_EDID => {
                let [scanout, _] = body.words(0)?;
                known_scanout(scanout)?;
                return Ok((response::OK_EDID, wire::edid(&edid::of(self.screen.wish()))));
            }
            command::RESOURCE_CREATE_2D => {
                let [id, format, width, height] = body.words(0)?;
                self.resources.create(id, format, width, height)?;
            }
            command::RESOURCE_UNREF => {
                let [id, _] = body.words(0)?;
                self.resources.remove(id)?;
                if self.scanout.as_ref().is_some_and(|it| it.resource == id) {
                    self.blank();
                }
            }
            command::SET_SCANOUT => self.set_scanout(body)?,
            command::RESOURCE_FLUSH => self.flush(body)?,
            command::TRANSFER_TO_HOST_2D => {
                let [x, y, width, height, low, high, id, _] = body.words(0)?;
                let offset = u64::from(high) << 32 | u64::from(low);
                self.resources.get(id)?.transfer(body.memory, Rect { x, y, width, height }, offset)?;
            }
            command::RESOURCE_ATTACH_BACKING => {
                let [id, count] = body.words(0)?;
                self.resources.attach(id, body.memory, || body.entries(count))?;
            }
            command::RESOURCE_DETACH_BACKING => {
                let [id, _] = body.words(0)?;
                self.resources.detach(id)?;
            }
            _ => return Err(Refusal::Unspecified),
        }
        Ok((response::OK_NODATA, Vec::new()))
    }

    fn set_scanout(&mut self, body: &Body<'_>) -> Result<(), Refusal> {
        let [x, y, width, height, scanout, id] = body.words(0)?;
        known_scanout(scanout)?;
        if id == 0 {
            self.blank();
            return Ok(());
        }
        self.show(id, Rect { x, y, width, height })
    }

    /// Shows `rect` of a resource.
    fn show(&mut self, id: u32, rect: Rect) -> Result<(), Refusal> {
        let resource = self.resources.get(id)?;
        let start = resource.start_of(rect)?;
        let size = Size::new(rect.width, rect.height).ok_or(Refusal::InvalidParameter)?;
        let same = self.scanout.as_ref().is_some_and(|it| (it.resource, it.rect) == (id, rect));
        if !same {
            let surface = Surface::new(size, start, resource.width as usize, resource.pixels.clone());
            let surface = Arc::new(surface);
            self.screen.put_up(surface.clone());
            self.scanout = Some(Scanout { resource: id, rect, surface });
        }
        Ok(())
    }

    /// Shows nothing.
    fn blank(&mut self) {
        if let Some(scanout) = self.scanout.take() {
            self.screen.put_up(Arc::new(Surface::black(scanout.surface.size())));
        }
    }

    fn flush(&mut self, body: &Body<'_>) -> Result<(), Refusal> {
        let [x, y, width, height, id, _] = body.words(0)?;
        self.resources.get(id)?.start_of(Rect { x, y, width, height })?;
        if let Some(scanout) = self.scanout.as_ref().filter(|it| it.resource == id) {
            // Neither wraps: both rectangles lie within the resource.
            let shown = scanout.rect.y..scanout.rect.y + scanout.rect.height;
            let (start, end) = (y.max(shown.start), (y + height).min(shown.end));
            if start < end {
                self.screen.drawn(&scanout.surface, start - shown.start..end - shown.start);
            }
        }
        Ok(())
    }

    /// Carries out what the cursor's queue has: commands without an answer.
    fn move_cursor(&mut self, memory: &GuestMemory, readable: &Buffers) {
        let Some(header) = Header::read(memory, readable) else { return };
        // The viewer draws it where its own pointer is: where the guest has it matters to nothing.
        let Ok([_, _, _, _, resource, hot_x, hot_y, _]) = Body::new(memory, readable).words(0) else {
            return;
        };
        if header.command == command::UPDATE_CURSOR {
            self.cursor = (resource != 0).then_some(CursorState { resource, hot_x, hot_y });
            self.show_cursor();
        }
    }

    /// Shows the cursor as its resource looks now; none if that has another size than cursors have, or is gone.
    fn show_cursor(&self) {
        let cursor = self.cursor.and_then(|CursorState { resource, hot_x, hot_y }| {
            let pixels = self.resources.get(resource).ok()?.square(CURSOR)?;
            Some(Cursor { hot_x: hot_x.min(CURSOR - 1), hot_y: hot_y.min(CURSOR - 1), pixels })
        });
        self.screen.set_cursor(cursor);
    }

    /// Transfers what resources look like from the guest's memory, once after the state was loaded.
    fn refresh(&mut self, memory: &GuestMemory) {
        if std::mem::take(&mut self.stale) {
            self.resources.refresh(memory);
            self.show_cursor();
            if let Some(scanout) = &self.scanout {
                self.screen.drawn(&scanout.surface, 0..scanout.rect.height);
            }
        }
    }
}

/// There is one scanout.
fn known_scanout(id: u32) -> Result<(), Refusal> {
    if id == 0 { Ok(()) } else { Err(Refusal::InvalidScanout) }
}

impl VirtioDevice for Gpu {
    fn name(&self) -> &str {
        "gpu"
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn features(&self) -> u64 {
        EDID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Written whole, it clears the events that it names.
        if let (EVENTS_CLEAR, [events, _, _, _]) = (offset, data) {
            self.config[0] &= !events;
        }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.screen.wished())]
    }

    fn negotiated(&mut self, _features: u64) {
        self.screen.set_resizable(true);
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.refresh(queues.memory());
        queues.each(index, |memory, chain| match index {
            CONTROL => Served::Used(self.control(memory, &chain)),
            _ => {
                self.move_cursor(memory, &chain.readable);
                Served::Used(0)
            }
        })
    }

    fn serve_source(&mut self, _index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        if clear(self.screen.wished()) {
            self.config[0] |= EVENT_DISPLAY;
            queues.config_changed();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.resources = Resources::new(self.resources.most_pixels);
        (self.scanout, self.cursor, self.stale) = (None, None, false);
        self.config[0] = 0;
        self.screen.set_resizable(false);
        self.screen.set_cursor(None);
        self.screen.take_down();
    }

    fn save(&self) -> Result<State, device::Error> {
        let scanout = self.scanout.as_ref();
        Ok(State::of(&Saved {
            events: self.config[0],
            resources: self.resources.save(),
            scanout: scanout.map(|it| SavedScanout { resource: it.resource, rect: it.rect }),
            cursor: self.cursor,
        }))
    }

    fn load(&mut self, state: State) -> Result<(), device::Error> {
        let saved: Saved = state.take()?;
        check(saved.events & !EVENT_DISPLAY == 0, "event")?;
        self.resources = Resources::load(saved.resources)?;
        if let Some(SavedScanout { resource, rect }) = saved.scanout {
            check(self.show(resource, rect).is_ok(), "scanout")?;
        }
        (self.config[0], self.cursor, self.stale) = (saved.events, saved.cursor, true);
        Ok(())
    }
}

/// Clears an eventfd; answers whether it was written.
fn clear(event: BorrowedFd<'_>) -> bool {
    read(event, &mut [0; 8]).is_ok()
}
