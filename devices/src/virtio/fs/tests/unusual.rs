//! What some file systems can and some programs want: files without a name, times of birth, flags, whiteouts.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::mount::{MsFlags, mount};
use nix::unistd::linkat;

use super::super::host;
use super::super::wire::{Append, Args, opcode};
use super::bridge::mounted;
use super::client::{Client, share, wide};

/// Not to be dumped: a flag that most file systems keep and that changes nothing.
const NO_DUMP: u32 = 0x40;

#[test]
fn a_file_without_a_name_gets_one_by_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let mode = libc::O_RDWR.cast_unsigned();
    let (file, handle) = guest.create_with(opcode::TMPFILE, 1, "/", [mode, 0o666, 0o027]).unwrap();
    assert_eq!((file.nlink, file.mode), (0, libc::S_IFREG | 0o640));
    assert_eq!(guest.write(handle, 0, b"content", 0), Ok(7));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(guest.attributes(file.node).unwrap().size, 7);
    assert_eq!(guest.link(file.node, 1, "named").unwrap().node, file.node);
    assert_eq!(fs::read(folder.path().join("named")).unwrap(), b"content");
    guest.release(handle).unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().nlink, 1);
    // One that never gets a name is gone when it is closed.
    let (file, handle) = guest.create_with(opcode::TMPFILE, 1, "", [mode, 0o600, 0]).unwrap();
    guest.release(handle).unwrap();
    assert_eq!(guest.attributes(file.node), Err(libc::ESTALE));
    assert_eq!(
        Client::read_only(folder.path()).create_with(opcode::TMPFILE, 1, "", [mode, 0o600, 0]).err(),
        Some(libc::EROFS)
    );
}

#[test]
fn a_kernel_makes_files_without_a_name_and_knows_when_files_were_made() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    mounted(share(folder.path(), true), |mounted| {
        let options = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).clone();
        match options.open(mounted) {
            Ok(mut file) => {
                file.write_all(b"content").unwrap();
                let number = format!("/proc/self/fd/{}", file.as_raw_fd());
                let named = mounted.join("named");
                linkat(AT_FDCWD, number.as_str(), AT_FDCWD, &named, AtFlags::AT_SYMLINK_FOLLOW).unwrap();
                assert_eq!(fs::read(folder.path().join("named")).unwrap(), b"content");
            }
            // Before Linux 6.1.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
        let born = |folder: &Path| fs::metadata(folder.join("file")).unwrap().created();
        // Before Linux 6.6.
        if let Ok(there) = born(mounted) {
            assert_eq!(there, born(folder.path()).unwrap());
        }
    });
}

#[test]
fn a_file_was_born_when_the_host_says_and_is_all_else_that_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "content").unwrap();
    let guest = Client::writable(folder.path());
    let node = guest.lookup(1, "file").unwrap().node;
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    let (stat, born) =
        (fs::metadata(&path).unwrap(), host::stat(File::open(&path).unwrap()).unwrap().attr.born);
    for fields in [[0, 0, 0xfff << 32], [1, handle, 0xfff << 32]] {
        let reply = guest.ask(opcode::STATX, node, &fields).unwrap();
        assert_eq!(reply.len(), 288);
        let mut rest = Args(&reply[32..]);
        let mut word = || rest.u32().unwrap();
        assert_eq!(word(), if born.is_some() { 0xfff } else { 0x7ff });
        assert_eq!(u64::from(word()), stat.blksize());
        assert_eq!([word(), word()], [0, 0]);
        assert_eq!([word(), word(), word(), word()], [1, stat.uid(), stat.gid(), stat.mode()]);
        let wide = |at: usize| Args(&reply[at..]).u64().unwrap();
        assert_eq!([wide(64), wide(72), wide(80)], [stat.ino(), 7, stat.blocks()]);
        let time = |at: usize| (wide(at).cast_signed(), Args(&reply[at + 8..]).u32().unwrap());
        assert_eq!(time(96).0, stat.atime());
        assert_eq!(time(112), born.unwrap_or_default());
        assert_eq!(
            (time(128), time(144)),
            ((stat.ctime(), stat.ctime_nsec() as u32), (stat.mtime(), stat.mtime_nsec() as u32))
        );
    }
    assert_eq!(guest.ask(opcode::STATX, node, &[1, handle + 1, 0]), Err(libc::EBADF));
}

/// An ioctl of a handle, with this data, and room for as much.
fn control(guest: &Client, handle: u64, code: u32, data: &[u8]) -> Result<Vec<u8>, i32> {
    let mut args = wide(&[handle, u64::from(code) << 32, 0x1000]);
    [data.len() as u32, 28].iter().for_each(|len| args.u32(*len));
    args.extend(data);
    guest.call(opcode::IOCTL, guest.node_of(handle), &args)
}

#[test]
fn of_all_ioctls_a_files_flags_are_read_and_set() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    fs::create_dir(folder.path().join("dir")).unwrap();
    let [get, set] = [libc::FS_IOC_GETFLAGS, libc::FS_IOC_SETFLAGS].map(|code| code as u32);
    let [guest, reader] = [Client::writable(folder.path()), Client::read_only(folder.path())];
    for name in ["file", "dir"] {
        let flags = || host::flags(File::open(folder.path().join(name)).unwrap());
        let Ok(before) = flags() else {
            println!("skipped: flags of a {name}: this host's file system has none");
            continue;
        };
        let open = |guest: &Client| {
            let node = guest.lookup(1, name).unwrap().node;
            if name == "dir" { guest.open_directory(node) } else { guest.open(node, libc::O_RDONLY) }.unwrap()
        };
        let (handle, other) = (open(&guest), open(&reader));
        let answer = [[0; 16].as_slice(), &before.to_le_bytes()].concat();
        assert_eq!(control(&guest, handle, get, &[]), Ok(answer.clone()));
        assert_eq!(control(&reader, other, get, &[]), Ok(answer));
        assert_eq!(control(&reader, other, set, &(before | NO_DUMP).to_le_bytes()), Err(libc::EROFS));
        assert_eq!(flags(), Ok(before));
        assert_eq!(control(&guest, handle, set, &(before | NO_DUMP).to_le_bytes()), Ok(vec![0; 16]));
        assert_eq!(flags(), Ok(before | NO_DUMP));
        assert_eq!(control(&guest, handle, set, &[1]), Err(libc::EINVAL));
        // FIONREAD, FIBMAP, FS_IOC_FIEMAP, FS_IOC_FSSETXATTR, FICLONE, TCGETS, FS_IOC_ENABLE_VERITY, and none.
        for code in [0x541b, 1, 0xc020_660b, 0x401c_5820, 0x4004_9409, 0x5401, 0x4080_6685, 0, u32::MAX] {
            assert_eq!(control(&guest, handle, code, &[0; 128]), Err(libc::ENOTTY), "{code:#x}");
        }
        assert_eq!(control(&guest, handle + 1, get, &[]), Err(libc::EBADF));
    }
}

#[test]
fn a_kernel_reads_and_sets_flags() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    let path = folder.path().join("file");
    if let Ok(before) = host::flags(File::open(&path).unwrap()) {
        mounted(share(folder.path(), true), |mounted| {
            let file = File::open(mounted.join("file")).unwrap();
            assert_eq!(host::flags(&file), Ok(before));
            host::set_flags(&file, before | NO_DUMP).unwrap();
            assert_eq!(host::flags(File::open(&path).unwrap()), Ok(before | NO_DUMP));
        });
    }
}

/// Mounts an overlay whose upper layer and work folder are in `upper`.
fn overlay(lower: &Path, upper: &Path, at: &Path) -> Result<(), Errno> {
    ["u", "w"].iter().for_each(|name| fs::create_dir(upper.join(name)).unwrap());
    let [lower, upper] = [lower, upper].map(|it| it.display().to_string());
    let options = format!("userxattr,lowerdir={lower},upperdir={upper}/u,workdir={upper}/w");
    mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
}

#[test]
fn an_overlay_has_its_upper_layer_on_a_share() {
    let [lower, shared, at, plain] = [(); 4].map(|()| tempfile::tempdir().unwrap());
    for name in ["kept", "changed", "removed", "moved"] {
        fs::write(lower.path().join(name), "lower").unwrap();
    }
    fs::create_dir(lower.path().join("dir")).unwrap();
    fs::write(lower.path().join("dir/below"), "lower").unwrap();
    mounted(share(shared.path(), true), |mounted| {
        let beside = plain.path().join("at");
        fs::create_dir(&beside).unwrap();
        if let Err(error) = overlay(lower.path(), plain.path(), &beside) {
            println!("skipped: an overlay: not even on a folder of this host: {error}");
            return;
        }
        overlay(lower.path(), mounted, at.path()).unwrap();
        let merged = at.path();
        fs::write(merged.join("changed"), "upper").unwrap();
        fs::remove_file(merged.join("removed")).unwrap();
        fs::rename(merged.join("moved"), merged.join("new name")).unwrap();
        fs::remove_dir_all(merged.join("dir")).unwrap();
        fs::create_dir(merged.join("dir")).unwrap();
        let mut names: Vec<_> = fs::read_dir(merged).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["changed", "dir", "kept", "new name"]);
        assert_eq!(fs::read_dir(merged.join("dir")).unwrap().count(), 0);
        let white = fs::symlink_metadata(shared.path().join("u/removed")).unwrap();
        assert!(white.file_type().is_char_device() && white.rdev() == 0, "a whiteout is on the host");
        assert_eq!(fs::read(lower.path().join("changed")).unwrap(), b"lower");
    });
}
