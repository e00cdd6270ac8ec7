//! Where files are: in which mount, on which device. A share may lead through several.

use super::host::Identity;

/// The most places that are told apart.
const MOST: usize = 1 << 15;

/// The place that the root is in.
pub const ROOT_PLACE: u16 = 0;
/// The file systems whose files are words of the kernel, not data: reading may wait for ever, or tell or do anything.
pub const WORDS: [libc::c_long; 16] = [
    libc::PROC_SUPER_MAGIC,
    libc::SYSFS_MAGIC,
    libc::TRACEFS_MAGIC,
    libc::DEBUGFS_MAGIC,
    libc::SECURITYFS_MAGIC,
    libc::CGROUP_SUPER_MAGIC,
    libc::CGROUP2_SUPER_MAGIC,
    libc::BPF_FS_MAGIC,
    libc::SELINUX_MAGIC,
    libc::NSFS_MAGIC,
    libc::RDTGROUP_SUPER_MAGIC,
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
];

struct Place {
    mount: u64,
    device: u64,
    /// A number of the device; that of the root is 0.
    number: u16,
    /// Whether its files are the kernel's own words, not data; unknown until one is to be opened.
    words: Option<bool>,
}

/// All places that were seen.
#[derive(Default)]
pub struct Places {
    places: Vec<Place>,
}

impl Places {
    /// The number of the place that a file is in, if one was seen there before.
    pub fn known(&self, file: Identity) -> Option<u16> {
        let mut places = self.places.iter();
        let at = places.position(|it| (it.mount, it.device) == (file.mount, file.device));
        at.map(|at| at as u16)
    }

    /// The number of the place that a file is in; none if there are too many.
    pub fn number(&mut self, file: Identity) -> Option<u16> {
        if let Some(known) = self.known(file) {
            return Some(known);
        }
        if self.places.len() >= MOST {
            return None;
        }
        let (mount, device) = (file.mount, file.device);
        let new = self.places.iter().map(|it| it.number + 1).max().unwrap_or(0);
        let number = self.places.iter().find(|it| it.device == device).map_or(new, |it| it.number);
        self.places.push(Place { mount, device, number, words: None });
        Some((self.places.len() - 1) as u16)
    }

    /// A file in a place.
    pub fn identity(&self, place: u16, ino: u64, kind: u32) -> Identity {
        let it = &self.places[usize::from(place)];
        Identity { mount: it.mount, device: it.device, ino, kind }
    }

    /// The inode number that the guest sees, to which the share is one device: the host's own on the root's device, and
    /// elsewhere with the device's number above it. Inode numbers so large that this has no room (from 2^48 on) are folded.
    pub fn visible(&self, place: u16, ino: u64) -> u64 {
        const BITS: u32 = 48;
        match self.places.get(usize::from(place)).map_or(0, |it| it.number) {
            0 => ino,
            number => u64::from(number) << BITS | (ino ^ ino >> BITS << 17) & ((1 << BITS) - 1),
        }
    }

    /// Whether files there are the kernel's own words, if that is known.
    pub fn words(&self, place: u16) -> Option<bool> {
        self.places.get(usize::from(place))?.words
    }

    /// Remembers what [`Self::words`] tells.
    pub fn set_words(&mut self, place: u16, words: bool) {
        if let Some(place) = self.places.get_mut(usize::from(place)) {
            place.words = Some(words);
        }
    }
}
