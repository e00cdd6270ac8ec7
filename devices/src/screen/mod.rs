//! The screen: what devices draw on, what viewers look at, and where keys and the pointer go.
//!
//! A device and a viewer never wait for each other. A device puts up a [`Surface`], whose pixels are read in pieces while
//! the guest may change them, and says which rows have changed; each viewer remembers up to which change it has looked.
//! Without a viewer, a change costs a few stores, and no thread wakes up.

mod input;
mod pixels;
#[cfg(test)]
mod tests;
mod viewer;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

pub use input::{ABS_MAX, Button, Input, InputSink};
pub use pixels::{PixelMemory, Pixels};
pub use viewer::{Look, Viewer};

/// The most pixels that a row or a column has: what a detailed timing of EDID has room for.
pub const MOST: u32 = 4095;
/// The most viewers at a time.
const MOST_VIEWERS: usize = 16;
/// The width and the height of a cursor in pixels (virtio 1.2 §5.7.6.10).
pub const CURSOR: u32 = 64;

/// A width and a height in pixels, neither 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Pixels of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// The size, unless a side is 0 or longer than [`MOST`].
    pub fn new(width: u32, height: u32) -> Option<Self> {
        let sides = 1..=MOST;
        (sides.contains(&width) && sides.contains(&height)).then_some(Self { width, height })
    }

    /// How many pixels that is.
    pub fn area(self) -> usize {
        self.width as usize * self.height as usize
    }

    /// Where a pixel is, in the [`Input::Pointer`]'s measure; what is outside counts as the nearest within.
    pub fn position(self, x: u32, y: u32) -> Input {
        let scale = |at: u32, side: u32| {
            let (at, last) = (at.min(side - 1), (side - 1).max(1));
            (u64::from(at) * u64::from(ABS_MAX) / u64::from(last)) as u16
        };
        Input::Pointer { x: scale(x, self.width), y: scale(y, self.height) }
    }
}

/// A picture of a fixed size, whose pixels a device changes while it is up.
pub struct Surface {
    size: Size,
    /// The pixel of the upper left corner.
    start: usize,
    /// Pixels from one row to the next.
    stride: usize,
    pixels: Arc<dyn Pixels>,
}

impl Surface {
    /// A picture in `pixels`: its upper left corner is pixel `start`, and each row begins `stride` pixels after the one
    /// before. What lies outside of the pixels is black.
    pub fn new(size: Size, start: usize, stride: usize, pixels: Arc<dyn Pixels>) -> Self {
        Self { size, start, stride, pixels }
    }

    /// The size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Reads pixels of row `y` from `x` on, as [`Pixels::read`] does; what is outside of the picture is black.
    pub fn read(&self, x: u32, y: u32, into: &mut [u32]) {
        let inside = if y < self.size.height { self.size.width.saturating_sub(x) as usize } else { 0 };
        let (inside, outside) = into.split_at_mut(inside.min(into.len()));
        let at = (y as usize).checked_mul(self.stride).and_then(|it| it.checked_add(self.start));
        match at.and_then(|it| it.checked_add(x as usize)) {
            Some(at) => self.pixels.read(at, inside),
            None => inside.fill(0),
        }
        outside.fill(0);
    }

    /// A picture that is black.
    pub fn black(size: Size) -> Self {
        Self::new(size, 0, 0, Arc::new(PixelMemory::default()))
    }

    /// The rows in which any of these pixels is.
    fn rows_of(&self, pixels: &Range<usize>) -> Range<u32> {
        let stride = self.stride.max(1);
        let row = |pixel: usize| pixel.saturating_sub(self.start) / stride;
        let end = row(pixels.end.saturating_add(stride - 1)).min(self.size.height as usize);
        row(pixels.start).min(end) as u32..end as u32
    }
}

/// What the pointer looks like: [`CURSOR`] rows of as many pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The pixel that points, from the left.
    pub hot_x: u32,
    /// The pixel that points, from the top.
    pub hot_y: u32,
    /// `0xAARRGGBB` each, row by row; an alpha of 0 is transparent.
    pub pixels: Vec<u32>,
}

/// The screen of one machine. It outlives the machines that have it, one after the other.
pub struct Screen {
    state: Mutex<State>,
    /// Whether a device takes a size that a viewer wishes.
    resizable: AtomicBool,
    /// Written when a viewer wishes another size.
    wished: EventFd,
}

/// What is locked for moments only: never while pixels are read.
struct State {
    /// What is there before a driver puts up something else, and after it is gone.
    base: Arc<Surface>,
    surface: Arc<Surface>,
    /// How often something has changed.
    change: u64,
    /// The change in which the surface was put up.
    put_up: u64,
    /// The change in which each row was last drawn.
    rows: Vec<u64>,
    /// The cursor that a device has set apart from the picture.
    cursor: Option<Arc<Cursor>>,
    /// The change in which it did.
    cursor_set: u64,
    wish: Size,
    viewers: Vec<Arc<EventFd>>,
}

impl Screen {
    /// A screen that is black.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(size: Size) -> io::Result<Self> {
        let black = Arc::new(Surface::black(size));
        let state = State {
            base: black.clone(),
            surface: black,
            change: 0,
            put_up: 0,
            rows: vec![0; size.height as usize],
            cursor: None,
            cursor_set: 0,
            wish: size,
            viewers: Vec::new(),
        };
        Ok(Self { state: state.into(), resizable: AtomicBool::new(false), wished: event()? })
    }

    /// Puts up the picture that a machine begins with: the board's side.
    pub fn begin(&self, surface: Arc<Surface>) {
        let mut state = self.lock();
        state.base = surface.clone();
        state.put_up(surface);
    }

    /// Puts up another picture: a device's side.
    pub fn put_up(&self, surface: Arc<Surface>) {
        self.lock().put_up(surface);
    }

    /// Puts up the picture of the beginning again: a device's side.
    pub fn take_down(&self) {
        let mut state = self.lock();
        if !Arc::ptr_eq(&state.base, &state.surface) {
            let base = state.base.clone();
            state.put_up(base);
        }
    }

    /// Says that `rows` of `surface` have been drawn, if that is up: a device's side.
    pub fn drawn(&self, surface: &Arc<Surface>, rows: Range<u32>) {
        let mut state = self.lock();
        if Arc::ptr_eq(&state.surface, surface) {
            state.draw(&[rows]);
            state.wake();
        }
    }

    /// Sets the cursor that is not a part of the picture, or none: a device's side.
    pub fn set_cursor(&self, cursor: Option<Cursor>) {
        let mut state = self.lock();
        if state.cursor.as_deref() == cursor.as_ref() {
            return;
        }
        state.cursor = cursor.map(Arc::new);
        state.cursor_set = state.next_change();
        state.wake();
    }

    /// Says whether a device takes another size: a device's side.
    pub fn set_resizable(&self, resizable: bool) {
        self.resizable.store(resizable, Ordering::SeqCst);
    }

    /// The size that was wished last, or the first one: a device's side.
    pub fn wish(&self) -> Size {
        self.lock().wish
    }

    /// Becomes readable, edge-triggered, when a viewer wishes another size: a device's side.
    pub fn wished(&self) -> BorrowedFd<'_> {
        self.wished.as_fd()
    }

    /// Asks the guest for another size: a viewer's side. Answers false if no driver is there that could take it; a driver
    /// may take it later, or never.
    pub fn resize(&self, size: Size) -> bool {
        let takes = self.resizable.load(Ordering::SeqCst);
        if takes {
            self.lock().wish = size;
            // It only fails if it was not read 2^64 times.
            let _ = self.wished.write(1);
        }
        takes
    }

    /// What is up now, for one look that need not know what has changed.
    pub fn surface(&self) -> Arc<Surface> {
        self.lock().surface.clone()
    }

    /// Begins to look.
    ///
    /// # Errors
    /// The process has no descriptor left, or too many look already.
    pub fn attach(self: &Arc<Self>) -> io::Result<Viewer> {
        Viewer::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_change(&mut self) -> u64 {
        self.change += 1;
        self.change
    }

    fn put_up(&mut self, surface: Arc<Surface>) {
        self.put_up = self.next_change();
        self.rows = vec![0; surface.size.height as usize];
        self.surface = surface;
        self.wake();
    }

    fn draw(&mut self, ranges: &[Range<u32>]) {
        let change = self.next_change();
        for rows in ranges {
            let end = self.rows.len().min(rows.end as usize);
            self.rows.get_mut(rows.start as usize..end).unwrap_or_default().fill(change);
        }
    }

    /// Has viewers look.
    fn wake(&self) {
        for viewer in &self.viewers {
            // It only fails if it was not read 2^64 times.
            let _ = viewer.write(1);
        }
    }
}

fn event() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}
