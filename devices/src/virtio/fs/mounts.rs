//! The mounts that files are in, and their devices. A share may lead through several.

use super::host::Identity;

/// The most mounts that are distinguished.
const MOST: usize = 1 << 15;

/// The mount that the root is in.
pub const ROOT_MOUNT: u16 = 0;
/// The pseudo file systems, whose files the kernel makes up: reading one may wait for ever, reveal or do anything.
pub const PSEUDO: [libc::c_long; 16] = [
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

struct Mount {
    id: u64,
    device: u64,
    /// A number of the device; that of the root is 0.
    number: u16,
    /// Whether it is a pseudo file system; unknown until one of its files is opened.
    pseudo: Option<bool>,
}

/// All mounts that were seen, known by their indices.
#[derive(Default)]
pub struct Mounts {
    mounts: Vec<Mount>,
}

impl Mounts {
    /// The mount that a file is in, if one was seen there before.
    pub fn known(&self, file: Identity) -> Option<u16> {
        let mut mounts = self.mounts.iter();
        let at = mounts.position(|it| (it.id, it.device) == (file.mount, file.device));
        at.map(|at| at as u16)
    }

    /// The mount that a file is in; none if there are too many.
    pub fn number(&mut self, file: Identity) -> Option<u16> {
        if let Some(known) = self.known(file) {
            return Some(known);
        }
        if self.mounts.len() >= MOST {
            return None;
        }
        let (id, device) = (file.mount, file.device);
        let new = self.mounts.iter().map(|it| it.number + 1).max().unwrap_or(0);
        let number = self.mounts.iter().find(|it| it.device == device).map_or(new, |it| it.number);
        self.mounts.push(Mount { id, device, number, pseudo: None });
        Some((self.mounts.len() - 1) as u16)
    }

    /// A file in a mount.
    pub fn identity(&self, mount: u16, ino: u64, kind: u32) -> Identity {
        let it = &self.mounts[usize::from(mount)];
        Identity { mount: it.id, device: it.device, ino, kind }
    }

    /// The inode number that the guest sees, to which the share is one device: the host's own on the root's device, and
    /// elsewhere with the device's number above it. Inode numbers so large that this has no room (from 2^48 on) are folded.
    pub fn visible(&self, mount: u16, ino: u64) -> u64 {
        const BITS: u32 = 48;
        match self.mounts.get(usize::from(mount)).map_or(0, |it| it.number) {
            0 => ino,
            number => u64::from(number) << BITS | (ino ^ ino >> BITS << 17) & ((1 << BITS) - 1),
        }
    }

    /// Whether it is a pseudo file system, if that is known.
    pub fn pseudo(&self, mount: u16) -> Option<bool> {
        self.mounts.get(usize::from(mount))?.pseudo
    }

    /// Remembers what [`Self::pseudo`] answers.
    pub fn set_pseudo(&mut self, mount: u16, pseudo: bool) {
        if let Some(mount) = self.mounts.get_mut(usize::from(mount)) {
            mount.pseudo = Some(pseudo);
        }
    }
}
