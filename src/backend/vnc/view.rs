//! A viewer that has got in: what it says (RFC 6143 §7.5), and what it gets (§7.6).
//!
//! A picture is asked for, then begun when there is something new, and made a rectangle at a time, as the viewer takes it: so
//! there is never more than one rectangle of it in memory, whatever the viewer does.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::screen::{Cursor, InputSink, Look, Size, Surface, Viewer};

use super::controls::Controls;
use super::encoding::{self, Encoder, Encoding, Rect, TIGHT_WIDTH_MAX, Workspace, header};
use super::pixel::PixelFormat;

/// Rows of a rectangle at most.
const BAND: u32 = 64;
/// How long after a look at the screen the next one is, and where nothing wakes the viewer.
const PAUSE: Duration = Duration::from_millis(16);
const SILENT_PAUSE: Duration = Duration::from_millis(33);
/// Bytes of a format in its message.
const FORMAT: usize = 16;

/// Messages of viewers.
mod message {
    pub const SET_PIXEL_FORMAT: u8 = 0;
    pub const SET_ENCODINGS: u8 = 2;
    pub const UPDATE_REQUEST: u8 = 3;
    pub const KEY: u8 = 4;
    pub const POINTER: u8 = 5;
    pub const CUT_TEXT: u8 = 6;
    pub const SET_DESKTOP_SIZE: u8 = 251;
    pub const QEMU: u8 = 255;
}

/// Reasons and results of an extended desktop size.
mod size {
    /// The server has done it.
    pub const SERVER: u16 = 0;
    /// This viewer has asked for it.
    pub const VIEWER: u16 = 1;
    pub const DONE: u16 = 0;
    pub const PROHIBITED: u16 = 1;
    pub const INVALID: u16 = 3;
    /// The guest has been asked.
    pub const FORWARDED: u16 = 4;
}

/// What a session waits for.
pub enum Wait<'a> {
    /// Nothing but what the viewer says.
    Never,
    /// This time.
    Until(Instant),
    /// A change of the screen.
    Change(BorrowedFd<'a>),
    /// The viewer, which is to take what is ready.
    Room,
}

/// Which of what is no picture a viewer understands.
#[derive(Default)]
struct Takes {
    cursor: bool,
    size: bool,
    extended_size: bool,
}

/// What goes to the viewer with its next picture.
#[derive(Default)]
struct Due {
    /// That keys may have codes.
    keys: bool,
    cursor: bool,
    /// The size, with a reason and a result.
    size: Option<(u16, u16)>,
}

/// A picture on its way.
struct Update {
    format: PixelFormat,
    encoding: Encoding,
    rects: VecDeque<Rect>,
    workspace: Workspace,
}

/// A viewer.
pub struct View {
    controls: Controls,
    viewer: Viewer,
    surface: Arc<Surface>,
    silent: bool,
    cursor: Option<Arc<Cursor>>,
    /// The size that the viewer knows.
    known: Size,
    /// Which of its rows have changed since they were sent.
    changed: Vec<bool>,
    format: PixelFormat,
    encoding: Option<Encoding>,
    /// How many of a list of encodings are on their way.
    encodings_left: u16,
    takes: Takes,
    due: Due,
    /// The rows that it has asked for.
    wanted: Option<Range<u32>>,
    /// Nothing is known to have changed since the last look.
    looked: bool,
    next_look: Instant,
    update: Option<Update>,
    encoder: Encoder,
}

impl View {
    /// A viewer that knows nothing of the picture yet.
    pub fn new(mut viewer: Viewer, input: Arc<dyn InputSink>, now: Instant) -> Self {
        let Look { surface, cursor, silent, .. } = viewer.look();
        let known = surface.size();
        Self {
            controls: Controls::new(input),
            viewer,
            surface,
            silent,
            cursor: cursor.flatten(),
            known,
            changed: vec![true; known.height as usize],
            format: PixelFormat::OWN,
            encoding: None,
            encodings_left: 0,
            takes: Takes::default(),
            due: Due::default(),
            wanted: None,
            looked: false,
            next_look: now,
            update: None,
            encoder: Encoder::default(),
        }
    }

    /// Appends what a viewer has to know first (§7.3.2).
    pub fn introduce(&self, name: &str, out: &mut Vec<u8>) {
        for side in [self.known.width, self.known.height] {
            out.extend((side as u16).to_be_bytes());
        }
        out.extend(self.format.to_bytes());
        out.extend((name.len() as u32).to_be_bytes());
        out.extend(name.as_bytes());
    }

    /// How long a message is, or the part of it by which that is known.
    ///
    /// # Errors
    /// There is no such message, and so no way to find the next.
    pub fn message_len(&self, begun: &[u8]) -> Result<usize, &'static str> {
        if self.encodings_left > 0 {
            return Ok(4);
        }
        Ok(match begun {
            [] => 1,
            [message::SET_PIXEL_FORMAT, ..] => 4 + FORMAT,
            [message::SET_ENCODINGS, ..] => 4,
            [message::UPDATE_REQUEST, ..] => 10,
            [message::KEY | message::CUT_TEXT | message::SET_DESKTOP_SIZE, ..] => 8,
            [message::POINTER, ..] => 6,
            [message::QEMU] => 2,
            [message::QEMU, 0, ..] => 12,
            _ => return Err("it sent a message that kite doesn't know"),
        })
    }

    /// Takes a message; returns how many bytes behind it are of no interest.
    ///
    /// # Errors
    /// It cannot be.
    pub fn take(&mut self, message: &[u8]) -> Result<u64, &'static str> {
        let short = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let long = |at: usize| u32::from(short(at)) << 16 | u32::from(short(at + 2));
        if self.encodings_left > 0 {
            self.encodings_left -= 1;
            self.take_encoding(long(0).cast_signed());
            return Ok(0);
        }
        match message[0] {
            message::SET_PIXEL_FORMAT => {
                let format = message[4..].first_chunk().ok_or("its pixel format is too short")?;
                self.format = PixelFormat::parse(format)?;
            }
            message::SET_ENCODINGS => {
                self.encodings_left = short(2);
                self.encoding = None;
                self.takes = Takes::default();
            }
            message::UPDATE_REQUEST => self.request(message[1] != 0, short(4), short(8)),
            message::KEY => self.controls.keysym(long(4), message[1] != 0),
            message::POINTER => {
                self.controls.pointer(short(2), short(4), message[1], self.surface.size());
            }
            // The guest has no clipboard that kite knows.
            message::CUT_TEXT => return Ok(long(4).into()),
            message::SET_DESKTOP_SIZE => {
                self.resize(short(2), short(4), message[6]);
                return Ok(16 * u64::from(message[6]));
            }
            _ => self.controls.scan_code(long(8), long(4), short(2) != 0),
        }
        Ok(0)
    }

    fn take_encoding(&mut self, number: i32) {
        match number {
            encoding::CURSOR_SHAPE => {
                self.takes.cursor = true;
                self.due.cursor |= self.cursor.is_some();
            }
            encoding::DESKTOP_SIZE => self.takes.size = true,
            encoding::EXTENDED_DESKTOP_SIZE => {
                self.takes.extended_size = true;
                self.due.size.get_or_insert((size::SERVER, size::DONE));
            }
            encoding::QEMU_EXTENDED_KEY => self.due.keys = true,
            // The viewer's first choice comes first.
            _ => self.encoding = self.encoding.or(Encoding::of(number)),
        }
        self.looked = false;
    }

    fn request(&mut self, incremental: bool, y: u16, height: u16) {
        let end = u32::from(y) + u32::from(height);
        let rows = u32::from(y).min(self.known.height)..end.min(self.known.height);
        if !incremental {
            self.changed[rows.start as usize..rows.end as usize].fill(true);
            self.looked = false;
        }
        self.wanted = Some(match self.wanted.take() {
            Some(before) => before.start.min(rows.start)..before.end.max(rows.end),
            None => rows,
        });
        // What had changed before may not have been wanted.
        self.looked &= !self.changed.contains(&true);
    }

    fn resize(&mut self, width: u16, height: u16, screens: u8) {
        let size = Size::new(width.into(), height.into()).filter(|_| screens == 1);
        let result = match size {
            None => size::INVALID,
            Some(size) if self.viewer.screen().resize(size) => size::FORWARDED,
            Some(_) => size::PROHIBITED,
        };
        self.due.size = Some((size::VIEWER, result));
        self.looked = false;
    }

    /// What [`Self::produce`] has to be called for again.
    pub fn wait(&self) -> Wait<'_> {
        match (&self.update, &self.wanted) {
            (Some(_), _) => Wait::Room,
            (None, None) => Wait::Never,
            (None, Some(_)) if self.looked && !self.silent => Wait::Change(self.viewer.changed()),
            (None, Some(_)) => Wait::Until(self.next_look),
        }
    }

    /// The screen has changed.
    pub fn notice_change(&mut self) {
        self.looked = false;
    }

    /// Appends the next rectangle of a picture, which it begins if the viewer wants one and something has changed.
    pub fn produce(&mut self, now: Instant, out: &mut Vec<u8>) {
        let is_time = self.next_look <= now && (self.silent || !self.looked);
        if self.update.is_none() && self.wanted.is_some() && is_time {
            self.look();
            self.next_look = now + if self.silent { SILENT_PAUSE } else { PAUSE };
            self.begin(out);
        }
        let Some(update) = &mut self.update else { return };
        if let Some(rect) = update.rects.pop_front() {
            header(rect, update.encoding.number(), out);
            let width = usize::from(rect.width);
            let pixels = &mut update.workspace.pixels;
            pixels.resize(width * usize::from(rect.height), 0);
            for (row, y) in pixels.chunks_mut(width).zip(u32::from(rect.y)..) {
                self.surface.read(rect.x.into(), y, row);
            }
            self.encoder.encode(update.encoding, update.format, width, &mut update.workspace, out);
        }
        if update.rects.is_empty() {
            self.update = None;
        }
    }

    fn look(&mut self) {
        let look = self.viewer.look();
        self.looked = true;
        self.silent = look.silent;
        if look.replaced {
            self.surface = look.surface;
            self.changed.fill(true);
        }
        for row in look.rows.into_iter().flatten() {
            if let Some(changed) = self.changed.get_mut(row as usize) {
                *changed = true;
            }
        }
        if let Some(cursor) = look.cursor {
            self.cursor = cursor;
            self.due.cursor = true;
        }
    }

    /// Begins a picture, if there is anything that the viewer wants and has not.
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.tell_size(out);
        let Some(wanted) = self.wanted.clone() else { return };
        let due = Due {
            keys: self.due.keys,
            cursor: self.due.cursor && self.takes.cursor,
            size: self.due.size.filter(|_| self.takes.extended_size),
        };
        let encoding = self.encoding.unwrap_or(Encoding::Raw);
        let rects = rects(self.known.width, &self.take_changed(wanted), encoding);
        let count = rects.len() + usize::from(due.keys) + usize::from(due.cursor) + due.size.iter().count();
        if count == 0 {
            return;
        }
        begin_update(count as u16, out);
        if due.keys {
            header(Rect { x: 0, y: 0, width: 0, height: 0 }, encoding::QEMU_EXTENDED_KEY, out);
        }
        if due.cursor {
            encoding::write_cursor(self.cursor.as_deref(), self.format, out);
        }
        if let Some((reason, result)) = due.size {
            encoding::write_extended_size(self.known, reason, result, out);
        }
        self.due = Due::default();
        self.wanted = None;
        let workspace = Workspace::default();
        self.update = Some(Update { format: self.format, encoding, rects, workspace });
    }

    /// Tells the viewer a new size, if it understands that, as all of an update, which no request is needed for.
    fn tell_size(&mut self, out: &mut Vec<u8>) {
        let size = self.surface.size();
        if size == self.known || !(self.takes.size || self.takes.extended_size) {
            return;
        }
        self.known = size;
        begin_update(1, out);
        if self.takes.extended_size {
            let (reason, result) = self.due.size.take().unwrap_or((size::SERVER, size::DONE));
            encoding::write_extended_size(size, reason, result, out);
        } else {
            let [width, height] = [size.width as u16, size.height as u16];
            header(Rect { x: 0, y: 0, width, height }, encoding::DESKTOP_SIZE, out);
        }
        self.changed = vec![true; size.height as usize];
        self.wanted = Some(0..size.height);
    }

    /// The rows among `wanted` that have changed, neighbours together; they count as sent.
    fn take_changed(&mut self, wanted: Range<u32>) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        let rows = self.changed.get_mut(wanted.start as usize..wanted.end as usize).unwrap_or_default();
        for (row, changed) in (wanted.start..).zip(rows) {
            if mem::take(changed) {
                match ranges.last_mut() {
                    Some(last) if last.end == row => last.end += 1,
                    _ => ranges.push(row..row + 1),
                }
            }
        }
        ranges
    }
}

fn begin_update(count: u16, out: &mut Vec<u8>) {
    out.extend([0, 0]);
    out.extend(count.to_be_bytes());
}

/// The rectangles by which rows are sent.
fn rects(width: u32, rows: &[Range<u32>], encoding: Encoding) -> VecDeque<Rect> {
    let longest = if encoding == Encoding::Tight { TIGHT_WIDTH_MAX } else { width };
    let bands = rows.iter().flat_map(|rows| {
        let end = rows.end;
        rows.clone().step_by(BAND as usize).map(move |y| y..end.min(y + BAND))
    });
    bands
        .flat_map(|band| {
            (0..width).step_by(longest as usize).map(move |x| Rect {
                x: x as u16,
                y: band.start as u16,
                width: longest.min(width - x) as u16,
                height: (band.end - band.start) as u16,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use devices::screen::Screen;

    use super::super::tests::Log;
    use super::*;

    #[test]
    fn rectangles_of_a_picture_are_made_in_the_same_memory() {
        let screen = Arc::new(Screen::new(Size::new(300, 250).unwrap()).unwrap());
        let mut now = Instant::now();
        let mut view = View::new(screen.attach().unwrap(), Arc::new(Log::default()), now);
        for encoding in [Encoding::Raw, Encoding::Tight, Encoding::Zrle] {
            view.encoding = Some(encoding);
            view.request(false, 0, 250);
            now += PAUSE;
            let mut places = Vec::new();
            loop {
                view.produce(now, &mut Vec::new());
                let Some(update) = &view.update else { break };
                places.push(update.workspace.pixels.as_ptr());
            }
            assert_eq!(places, [places[0]; 3], "{encoding:?}");
        }
    }
}
