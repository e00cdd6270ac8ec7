//! What looks at a screen.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use super::{Cursor, MOST_VIEWERS, Screen, Surface, event};

/// One that looks at a screen, until it is dropped. It is awake when something has changed.
pub struct Viewer {
    screen: Arc<Screen>,
    changed: Arc<EventFd>,
    /// The last change that it has seen.
    seen: Option<u64>,
}

/// What a viewer sees.
pub struct Look {
    /// The picture.
    pub surface: Arc<Surface>,
    /// Whether it is another picture than at the last look, perhaps of another size: all of it has changed.
    pub replaced: bool,
    /// What has changed since the last look, in order and apart from each other.
    pub rows: Vec<Range<u32>>,
    /// The cursor, if it has changed since the last look: none, or what it looks like. A screen begins without.
    pub cursor: Option<Option<Arc<Cursor>>>,
    /// Whether nothing wakes the viewer for changes of this picture: it has to look now and then.
    pub silent: bool,
}

impl Viewer {
    pub(super) fn new(screen: Arc<Screen>) -> io::Result<Self> {
        let changed = Arc::new(event()?);
        let mut state = screen.lock();
        if state.viewers.len() == MOST_VIEWERS {
            return Err(io::Error::other(format!("{MOST_VIEWERS} viewers are at the screen already")));
        }
        state.viewers.push(changed.clone());
        drop(state);
        // It only fails if it was not read 2^64 times.
        let _ = changed.write(1);
        Ok(Self { screen, changed, seen: None })
    }

    /// The screen.
    pub fn screen(&self) -> &Arc<Screen> {
        &self.screen
    }

    /// Is readable when something has changed; [`Self::look`] clears it.
    pub fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Looks at the screen as it is. The first look sees everything as changed.
    pub fn look(&mut self) -> Look {
        // Before anything is looked at: what changes from here on wakes again. It fails if nothing has changed.
        let _ = self.changed.read();
        self.ask_silent();
        let state = self.screen.lock();
        let seen = self.seen.replace(state.change);
        let surface = state.surface.clone();
        let replaced = seen.is_none_or(|seen| state.put_up > seen);
        let rows = match seen {
            Some(seen) if !replaced => changed_rows(&state.rows, seen),
            _ => vec![0..surface.size.height],
        };
        let cursor_set = seen.map_or(state.cursor.is_some(), |seen| state.cursor_set > seen);
        let cursor = cursor_set.then(|| state.cursor.clone());
        drop(state);
        let silent = surface.pixels.is_silent();
        Look { surface, replaced, rows, cursor, silent }
    }

    /// Asks pixels that do not say so what has changed, and marks it for all viewers.
    fn ask_silent(&self) {
        let surface = self.screen.lock().surface.clone();
        if !surface.pixels.is_silent() {
            return;
        }
        let mut drawn = Vec::new();
        surface.pixels.changed(&mut |pixels| drawn.push(surface.rows_of(&pixels)));
        let mut state = self.screen.lock();
        if !drawn.is_empty() && Arc::ptr_eq(&state.surface, &surface) {
            state.draw(&drawn);
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.screen.lock().viewers.retain(|it| !Arc::ptr_eq(it, &self.changed));
    }
}

/// Rows that were drawn after `seen`, neighbours together.
fn changed_rows(rows: &[u64], seen: u64) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for (row, _) in (0..).zip(rows).filter(|(_, drawn)| **drawn > seen) {
        match ranges.last_mut() {
            Some(last) if last.end == row => last.end += 1,
            _ => ranges.push(row..row + 1),
        }
    }
    ranges
}
