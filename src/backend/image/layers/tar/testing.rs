//! Archives in the making, for tests.

/// An entry to be written.
#[derive(Clone, Debug)]
pub struct Item {
    /// The name in the header.
    pub name: Vec<u8>,
    /// What the entry is.
    pub flag: u8,
    /// Its mode.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Where it links to.
    pub target: Vec<u8>,
    /// Its data.
    pub data: Vec<u8>,
    /// A device's number.
    pub device: (u32, u32),
    /// What a PAX header in front says.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Item {
    /// An entry of a type.
    pub fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            flag,
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            target: Vec::new(),
            data: Vec::new(),
            device: (0, 0),
            records: Vec::new(),
        }
    }

    /// A PAX record in front of it.
    pub fn record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// With this mode.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With these numbers of owner and group.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    /// With this device's number.
    pub fn device(self, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..self }
    }

    /// The bytes of the entry, headers in front of it included.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.records.is_empty() {
            let records = self.records.iter().flat_map(|(key, value)| record(key, value)).collect();
            bytes.extend(Self { data: records, ..Self::new(b'x', "pax") }.bytes());
        }
        bytes.extend(self.header());
        bytes.extend(padded(&self.data));
        bytes
    }

    /// The header.
    pub fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.owner.0).as_bytes());
        put(116, format!("{:07o}", self.owner.1).as_bytes());
        put(124, format!("{:011o}", self.data.len()).as_bytes());
        put(136, format!("{:011o}", 1_600_000_000).as_bytes());
        put(156, &[self.flag]);
        put(157, &self.target[..self.target.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        summed(header)
    }
}

/// The header with its checksum.
pub fn summed(mut header: [u8; 512]) -> [u8; 512] {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Data, and zeros up to the end of a block.
pub fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

/// A regular file.
pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Item {
    Item { data: data.as_ref().to_vec(), ..Item::new(b'0', name) }
}

/// A directory.
pub fn directory(name: impl AsRef<[u8]>) -> Item {
    Item::new(b'5', name)
}

/// A symbolic link.
pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { target: target.as_ref().to_vec(), ..Item::new(b'2', name) }
}

/// A hard link.
pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { target: target.as_ref().to_vec(), ..Item::new(b'1', name) }
}

/// An archive of these entries.
pub fn archive<'a>(items: impl IntoIterator<Item = &'a Item>) -> Vec<u8> {
    let mut bytes: Vec<u8> = items.into_iter().flat_map(Item::bytes).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A PAX record.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
