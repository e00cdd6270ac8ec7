//! A guest in the hands of a test: it asks the server for anything, and takes its replies apart.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::Share;
use super::super::server::Server;
use super::super::wire::{Append, Args, DIRENT, ENTRY_OUT, IN_HEADER, OUT_HEADER, opcode, padding};
use super::message::Message;

/// The reply, or the error number.
pub type Answer<T> = Result<T, i32>;

/// What a guest is told of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub node: u64,
    pub ino: u64,
    pub size: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A guest of one share.
pub struct Client {
    pub server: Server,
    /// Whose requests they are.
    pub uid: u32,
    /// Which node each handle is of.
    nodes: Mutex<HashMap<u64, u64>>,
}

/// A folder that is shared, as [`Share::new`] has it, but that its programs may be anybody's.
pub fn share(root: &Path, writable: bool) -> Share {
    let share = Share::new("test", File::open(root).expect("it is there").into(), writable);
    Share { suid: true, ..share }
}

impl Client {
    pub fn new(share: Share) -> Self {
        let it = Self::without_session(share);
        it.begin();
        it
    }

    /// A guest that has not said how it speaks.
    pub fn without_session(share: Share) -> Self {
        let server = Server::new(Arc::new(share)).expect("it is a directory");
        Self { server, uid: 0, nodes: Mutex::default() }
    }

    /// The same guest, of a new server of `share` that is loaded from this one's state.
    pub fn reloaded(self, share: Share) -> Self {
        let state = self.server.save().expect("what is open has names");
        let server = Server::new(Arc::new(share)).expect("it is a directory");
        server.load(state).expect("a server loads what it saved");
        Self { server, ..self }
    }

    /// Begins a session, another one if there is one.
    pub fn begin(&self) {
        let mut args = Vec::new();
        [7, 38, 1 << 20, u32::MAX].iter().for_each(|value| args.u32(*value));
        self.call(opcode::INIT, 0, &args).expect("a session begins");
    }

    /// The node that a handle is of; the root for one that is none.
    pub fn node_of(&self, handle: u64) -> u64 {
        self.nodes.lock().unwrap().get(&handle).copied().unwrap_or(1)
    }

    fn remember(&self, handle: u64, node: u64) -> u64 {
        self.nodes.lock().unwrap().insert(handle, node);
        handle
    }

    pub fn writable(root: &Path) -> Self {
        Self::new(share(root, true))
    }

    pub fn read_only(root: &Path) -> Self {
        Self::new(share(root, false))
    }

    /// A request of these bytes; the whole reply in a room of so many.
    pub fn raw(&self, request: &[u8], room: usize) -> Vec<u8> {
        let mut reply = vec![0; room];
        let mut message = Message { request, reply: &mut reply };
        let at_once = self.server.serve(&mut message, false);
        let len = at_once.or_else(|| self.server.serve(&mut message, true)).expect("what may wait is done");
        assert!(len <= room, "a reply of {len} bytes in room for {room}");
        reply.truncate(len);
        reply
    }

    /// The bytes of a request.
    pub fn request(&self, code: u32, node: u64, args: &[u8]) -> Vec<u8> {
        let mut request = Vec::new();
        request.u32((IN_HEADER + args.len()) as u32);
        request.u32(code);
        request.u64(0x1234_5678_9abc_def0);
        request.u64(node);
        [self.uid, self.uid, 77, 0].iter().for_each(|value| request.u32(*value));
        request.extend(args);
        request
    }

    pub fn call(&self, code: u32, node: u64, args: &[u8]) -> Answer<Vec<u8>> {
        let long = [opcode::READ, opcode::READDIR, opcode::READDIRPLUS].contains(&code);
        let mut reply = self.raw(&self.request(code, node, args), if long { 256 << 10 } else { 8 << 10 });
        let body = reply.split_off(OUT_HEADER.min(reply.len()));
        let mut header = Args(&reply);
        let (len, error) = (header.u32().unwrap(), header.u32().unwrap().cast_signed());
        assert_eq!(len as usize, OUT_HEADER + body.len());
        assert_eq!(header.u64().unwrap(), 0x1234_5678_9abc_def0);
        assert!((-4095..=0).contains(&error) && (error == 0 || body.is_empty()), "{error}: {body:?}");
        if error == 0 { Ok(body) } else { Err(-error) }
    }

    /// A request whose fields are these numbers, of 8 bytes each.
    pub fn ask(&self, code: u32, node: u64, fields: &[u64]) -> Answer<Vec<u8>> {
        self.call(code, node, &wide(fields))
    }

    pub fn lookup(&self, parent: u64, name: &str) -> Answer<Entry> {
        let entry = entry(&self.call(opcode::LOOKUP, parent, &string(name))?);
        if entry.node == 0 { Err(libc::ENOENT) } else { Ok(entry) }
    }

    /// Looks up one name after another, from the root on.
    pub fn walk(&self, path: &str) -> Answer<Entry> {
        let root = Entry { node: 1, ..Entry::default() };
        path.split('/').try_fold(root, |parent, name| self.lookup(parent.node, name))
    }

    pub fn forget(&self, node: u64, count: u64) {
        assert_eq!(self.raw(&self.request(opcode::FORGET, node, &wide(&[count])), 100), b"");
    }

    pub fn attributes(&self, node: u64) -> Answer<Entry> {
        let reply = self.ask(opcode::GETATTR, node, &[0, 0])?;
        Ok(Entry { node, ..attr(&reply[16..]) })
    }

    pub fn open(&self, node: u64, flags: i32) -> Answer<u64> {
        self.handle(opcode::OPEN, node, flags)
    }

    pub fn open_directory(&self, node: u64) -> Answer<u64> {
        self.handle(opcode::OPENDIR, node, libc::O_DIRECTORY)
    }

    fn handle(&self, code: u32, node: u64, flags: i32) -> Answer<u64> {
        let reply = self.ask(code, node, &[u64::from(flags.cast_unsigned())])?;
        Ok(self.remember(Args(&reply).u64().unwrap(), node))
    }

    pub fn create(&self, parent: u64, name: &str, flags: i32, mode: u32) -> Answer<(Entry, u64)> {
        self.create_with(opcode::CREATE, parent, name, [flags.cast_unsigned(), mode, 0])
    }

    /// Creates a file by CREATE or TMPFILE, with these flags, mode and mask.
    pub fn create_with(&self, code: u32, parent: u64, name: &str, fields: [u32; 3]) -> Answer<(Entry, u64)> {
        let mut args = Vec::new();
        fields.iter().chain(&[0]).for_each(|value| args.u32(*value));
        args.extend(string(name));
        let reply = self.call(code, parent, &args)?;
        let made = entry(&reply);
        Ok((made, self.remember(Args(&reply[ENTRY_OUT..]).u64().unwrap(), made.node)))
    }

    pub fn make(&self, code: u32, parent: u64, name: &str, mode: u32) -> Answer<Entry> {
        self.make_masked(code, parent, name, [mode, 0])
    }

    /// Makes a directory or another file, with this mode and mask.
    pub fn make_masked(&self, code: u32, parent: u64, name: &str, [mode, mask]: [u32; 2]) -> Answer<Entry> {
        let mut args = Vec::new();
        args.u32(mode);
        if code == opcode::MKNOD {
            args.u32(0);
        }
        args.u32(mask);
        if code == opcode::MKNOD {
            args.u32(0);
        }
        args.extend(string(name));
        self.call(code, parent, &args).map(|reply| entry(&reply))
    }

    pub fn symlink(&self, parent: u64, name: &str, target: &str) -> Answer<Entry> {
        let args = [string(name), string(target)].concat();
        self.call(opcode::SYMLINK, parent, &args).map(|reply| entry(&reply))
    }

    pub fn remove(&self, code: u32, parent: u64, name: &str) -> Answer<()> {
        self.call(code, parent, &string(name)).map(drop)
    }

    pub fn rename(&self, (parent, name): (u64, &str), (to, new_name): (u64, &str), flags: u64) -> Answer<()> {
        let args = [wide(&[to, flags]), string(name), string(new_name)].concat();
        self.call(opcode::RENAME2, parent, &args).map(drop)
    }

    pub fn link(&self, node: u64, parent: u64, name: &str) -> Answer<Entry> {
        let args = [wide(&[node]), string(name)].concat();
        self.call(opcode::LINK, parent, &args).map(|reply| entry(&reply))
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, node: u64, name: &str, value: &[u8], how: u32) -> Answer<()> {
        let mut args = Vec::new();
        [value.len() as u32, 0, how, 0].iter().for_each(|field| args.u32(*field));
        args.extend(string(name));
        args.extend(value);
        self.call(opcode::SETXATTR, node, &args).map(drop)
    }

    pub fn read(&self, handle: u64, offset: u64, size: u32) -> Answer<Vec<u8>> {
        self.ask(opcode::READ, self.node_of(handle), &[handle, offset, size.into(), 0, 0])
    }

    pub fn write(&self, handle: u64, offset: u64, data: &[u8], flags: i32) -> Answer<u32> {
        let size = data.len() as u64;
        let mut args = wide(&[handle, offset, size, 0, u64::from(flags.cast_unsigned())]);
        args.extend(data);
        let reply = self.call(opcode::WRITE, self.node_of(handle), &args)?;
        Ok(Args(&reply).u32().unwrap())
    }

    pub fn release(&self, handle: u64) -> Answer<()> {
        self.ask(opcode::RELEASE, self.node_of(handle), &[handle, 0, 0]).map(drop)
    }

    /// The names from a position on, each with the next position and, if asked for, its node.
    pub fn list(&self, node: u64, handle: u64, from: u64, size: u32, plus: bool) -> Answer<Vec<Listed>> {
        let code = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let reply = self.ask(code, node, &[handle, from, size.into(), 0, 0])?;
        assert!(reply.len() <= size as usize);
        let mut rest = &reply[..];
        let mut listed = Vec::new();
        while !rest.is_empty() {
            let found = if plus { entry(rest) } else { Entry::default() };
            rest = &rest[if plus { ENTRY_OUT } else { 0 }..];
            let mut fields = Args(rest);
            let (ino, next) = (fields.u64().unwrap(), fields.u64().unwrap());
            let len = fields.u32().unwrap() as usize;
            let name = String::from_utf8(rest[DIRENT..DIRENT + len].to_vec()).unwrap();
            assert!(ino != 0 && !name.is_empty());
            listed.push(Listed { name, next, entry: found });
            rest = &rest[DIRENT + len + padding(len)..];
        }
        Ok(listed)
    }
}

/// One name of a directory.
pub struct Listed {
    pub name: String,
    pub next: u64,
    pub entry: Entry,
}

pub fn wide(fields: &[u64]) -> Vec<u8> {
    fields.iter().flat_map(|it| it.to_le_bytes()).collect()
}

pub fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Of `struct fuse_entry_out`.
fn entry(reply: &[u8]) -> Entry {
    Entry { node: Args(reply).u64().unwrap(), ..attr(&reply[40..]) }
}

/// Of `struct fuse_attr`.
fn attr(bytes: &[u8]) -> Entry {
    let mut args = Args(bytes);
    let (ino, size) = (args.u64().unwrap(), args.u64().unwrap());
    let mut rest = Args(&bytes[60..]);
    let mut word = || rest.u32().unwrap();
    Entry { node: 0, ino, size, mode: word(), nlink: word(), uid: word(), gid: word() }
}
