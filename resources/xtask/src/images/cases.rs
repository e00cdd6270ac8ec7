//! The images that are compared, each made in a folder of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, chown, symlink as link};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::layout::{self, Layer};
use super::tar::{Item, archive, directory, file, hard_link, symlink};
use super::{Image, run, tagged};
use crate::host;
use crate::step::output;

/// Makes an image in a folder.
pub type Case = fn(&Path) -> Result<Image>;

/// Every image with its name.
pub const CASES: &[(&str, Case)] = &[
    ("umoci-insert", |folder| inserted(folder).map(Image::layout)),
    ("buildah", buildah),
    ("oci-archive", |folder| copied(folder, "oci-archive:", "image.tar", &[])),
    ("docker-archive", |folder| copied(folder, "docker-archive:", "image.tar", &[])),
    ("zstd", |folder| copied(folder, "oci:", "zstd", &["--dest-compress-format", "zstd"])),
    ("zstd-frames", zstd_frames),
    ("gzip-members", gzip_members),
    ("gnu-tar", |folder| by_tar(folder, &["--format=gnu"])),
    ("v7-tar", |folder| by_tar(folder, &["--format=v7", "--exclude=./fifo", "--exclude=./link"])),
    ("sparse-0.0", |folder| by_tar(folder, &["--format=posix", RAW_HOLES, "--sparse-version=0.0"])),
    ("sparse-0.1", |folder| by_tar(folder, &["--format=posix", RAW_HOLES, "--sparse-version=0.1"])),
    ("sparse-1.0", |folder| by_tar(folder, &["--format=posix", RAW_HOLES, "--sparse-version=1.0"])),
    ("whiteouts", whiteouts),
    ("whiteouts-behind", whiteouts_behind),
    ("opaque", opaque),
    ("hard-links", hard_links),
    ("replaced", replaced),
    ("through-links", through_links),
    ("owners", owners),
    ("xattrs", xattrs),
    ("twice", twice),
    ("names", names),
    ("sizes", sizes),
];

/// Has GNU tar leave out holes, which it finds by their zeros on any file system.
const RAW_HOLES: &str = "--hole-detection=raw";

/// A layout of archives of these entries.
fn made(folder: &Path, layers: &[&[Item]]) -> Result<Image> {
    let layers = layers.iter().map(|items| Layer::gzip(archive(*items))).collect::<Result<Vec<_>>>()?;
    layout::write(folder.join("layout"), &layers).map(Image::layout)
}

/// What most images have below.
fn base() -> Vec<Item> {
    vec![
        directory("usr/"),
        directory("usr/bin/"),
        file("usr/bin/tool", "tool").mode(0o755),
        symlink("bin", "usr/bin"),
        directory("etc/").mode(0o700).owner(3, 4),
        file("etc/a", "a"),
        file("etc/b", "b"),
        directory("etc/sub/"),
        file("etc/sub/x", "x"),
        file("var/lib/deep/file", "deep"),
        symlink("absolute", "/etc"),
        symlink("up", "../../../usr"),
        symlink("dangling", "no/where"),
    ]
}

fn whiteouts(folder: &Path) -> Result<Image> {
    let upper = [
        file(".wh.usr", ""),
        file("etc/.wh.a", ""),
        hard_link("etc/.wh.sub", "etc/b"),
        file("absolute/.wh.nothing", ""),
        file("nowhere/.wh.x", ""),
        directory(".wh..wh.plnk"),
        symlink(".wh.dangling", "x"),
    ];
    made(folder, &[&base(), &upper])
}

fn whiteouts_behind(folder: &Path) -> Result<Image> {
    let upper = [
        file("etc/a", "new"),
        file("etc/.wh.a", ""),
        file("etc/.wh.sub", ""),
        file("etc/sub/y", "y"),
        file("usr/lib/new", "new"),
        file(".wh.usr", ""),
        file("var", "a file now"),
        file(".wh.var", ""),
    ];
    made(folder, &[&base(), &upper])
}

fn opaque(folder: &Path) -> Result<Image> {
    let first = [
        file("etc/.wh..wh..opq", ""),
        file("etc/new", "new"),
        file("usr/bin/x", "x"),
        file("usr/.wh..wh..opq", ""),
        file("missing/.wh..wh..opq", ""),
    ];
    let second = [
        file("etc/c", "c"),
        file("etc/sub2/z", "z"),
        directory("etc/").mode(0o711),
        hard_link("absolute/.wh..wh..opq", "bin"),
    ];
    made(folder, &[&base(), &first, &second])
}

fn hard_links(folder: &Path) -> Result<Image> {
    let first = [
        hard_link("1", "etc/a"),
        hard_link("etc/sub/2", "1"),
        hard_link("3", "absolute/b"),
        hard_link("4", "/bin/../../etc/b"),
        hard_link("5", "bin"),
        hard_link("bin/6", "up/bin/tool"),
    ];
    let second = [
        file("etc/a", "replaced"),
        file("4", "another").owner(1000, 1000),
        file(".wh.3", ""),
        hard_link("7", "1"),
    ];
    made(folder, &[&base(), &first, &second])
}

fn replaced(folder: &Path) -> Result<Image> {
    let upper = [
        symlink("etc", "usr"),
        file("usr/bin", "a file"),
        directory("bin/"),
        file("bin/in", "in"),
        directory("absolute/"),
        file("absolute/q", "q"),
        symlink("var/lib", "/bin"),
        file("var/lib/thing", "thing"),
        Item::new(b'6', "dangling"),
    ];
    made(folder, &[&base(), &upper])
}

fn through_links(folder: &Path) -> Result<Image> {
    let upper = [
        file("bin/1", "1"),
        file("absolute/2", "2"),
        file("up/3", "3"),
        file("dangling/4", "4"),
        file("up/../../5", "5"),
        file("/abs/../6", "6"),
        file("../../7", "7"),
        symlink("l1", "l2/.."),
        symlink("l2", "up/bin/../."),
        file("l1/8", "8"),
        file("./a//b/./c", "c"),
    ];
    made(folder, &[&base(), &upper])
}

fn owners(folder: &Path) -> Result<Image> {
    let lower = [
        directory("./").mode(0o1777).owner(5, 6),
        file("f", "f")
            .mode(0o6755)
            .owner(0, 70_000)
            .record("uid", "3000000000")
            .record("mtime", "1.000000001"),
        symlink("s", "f").owner(9, 9).mode(0o123),
        Item::new(b'3', "c").device(5, 70_000).mode(0o622),
        Item::new(b'4', "b").device(259, 1).owner(0, 6),
        Item::new(b'6', "p").mode(0o1600),
        file("before-1970", "").record("mtime", "-1.5"),
        directory("d/").mode(0),
        file("d/x", vec![b'x'; 5000]).mode(0),
    ];
    let upper = [directory("d/").mode(0o2750).owner(1, 2), hard_link("d/y", "d/x")];
    made(folder, &[&lower, &upper])
}

fn xattrs(folder: &Path) -> Result<Image> {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    // Version 2; the owner, user 5, the group, the mask and others.
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 5), (4, 7, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let lower = [
        directory("./").record("SCHILY.xattr.user.root", "r").record("SCHILY.xattr.trusted.root", "t"),
        file("f", "f")
            .record("SCHILY.xattr.security.capability", capability)
            .record("SCHILY.xattr.user.n", "v")
            .record("SCHILY.xattr.trusted.t", "\0\n=\u{1}")
            .record("SCHILY.xattr.security.selinux", "no"),
        directory("d/").record("SCHILY.xattr.user.d", vec![b'd'; 3000]),
        symlink("s", "f").record("SCHILY.xattr.trusted.s", "s"),
        hard_link("h", "f"),
        file("acl", "x").mode(0o674).record("SCHILY.xattr.system.posix_acl_access", &acl),
        directory("acls/").mode(0o755).record("SCHILY.xattr.system.posix_acl_default", &acl),
    ];
    let upper = [directory("d/").record("SCHILY.xattr.user.e", "e"), file("f", "g")];
    made(folder, &[&lower, &upper])
}

fn twice(folder: &Path) -> Result<Image> {
    let items = [
        file("a", "first"),
        hard_link("b", "a"),
        file("a", "second"),
        directory("d/"),
        file("d/x", "x"),
        directory("d/").mode(0o700),
        file("d", "a file"),
        directory("d/"),
        file("d/y", "y"),
        symlink("s", "a"),
        file("s", "no link"),
    ];
    made(folder, &[&items])
}

fn names(folder: &Path) -> Result<Image> {
    let long = |text: &str, count| text.repeat(count);
    let gnu =
        |flag, text: String| Item { data: format!("{text}\0").into(), ..Item::new(flag, "././@LongLink") };
    let items = [
        file("n", "1").record("path", long("n", 255)),
        file("x", "deep").record("path", format!("{}x", long("d/", 100))),
        file("u", "u").record("path", "\u{e4}\u{4e2d}"),
        file("line\n\x01\x7f", "line"),
        file("back\\slash", "b"),
        symlink("long", "x").record("linkpath", long("t", 4000)),
        hard_link("linked", "x").record("linkpath", long("n", 255)),
        gnu(b'L', format!("{}/{}", long("g", 200), long("h", 120))),
        file("short", "gnu"),
        gnu(b'K', long("k", 900)),
        symlink("gnu", "short"),
        file(b"\xff\xfe", "no text"),
    ];
    made(folder, &[&items])
}

fn sizes(folder: &Path) -> Result<Image> {
    let sizes = [0, 1, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 131_073, 300_000];
    let mut items: Vec<_> = sizes.iter().map(|size| file(format!("size-{size}"), noise(*size))).collect();
    items.push(file("zeros", vec![0; 200_000]));
    items.push(file("holes", [vec![1], vec![0; 50_000], vec![2]].concat()));
    items.extend((0..3000).map(|index| file(format!("many/{}", index * 7919 % 5003), index.to_string())));
    // Hidden again, most of them.
    let upper: Vec<_> =
        (0..2900).map(|index| file(format!("many/.wh.{}", index * 7919 % 5003), "")).collect();
    made(folder, &[&items, &upper])
}

/// Bytes that compress badly (xorshift32, Marsaglia, 2003).
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 2_463_534_242_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Some archive as the layer of an image that kite gets as `blob`, and umoci as gzip.
fn packed(folder: &Path, kind: &'static str, blob: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<Image> {
    let archive = archive(&[file("noise", noise(300_000)), file("zeros", vec![0; 100_000]), directory("d/")]);
    let blob = blob(&archive)?;
    let umoci = layout::write(folder.join("gzip"), &[Layer::gzip(archive.clone())?])?;
    let kite = layout::write(folder.join("packed"), &[Layer::new(archive, blob, kind)])?;
    Ok(Image { kite, umoci })
}

fn zstd_frames(folder: &Path) -> Result<Image> {
    let skippable =
        |len: u32| [&0x184d_2a53_u32.to_le_bytes()[..], &len.to_le_bytes(), &noise(len as usize)].concat();
    packed(folder, "tar+zstd", |archive| {
        let frames = archive.chunks(100_000).flat_map(|part| {
            let frame = compress_to_vec(part, CompressionLevel::Fastest);
            [skippable(1000), frame].concat()
        });
        Ok(frames.chain(skippable(0)).collect())
    })
}

fn gzip_members(folder: &Path) -> Result<Image> {
    packed(folder, "tar+gzip", |archive| {
        let members = archive.chunks(70_000).map(layout::gzip).collect::<Result<Vec<_>>>()?;
        Ok(members.concat())
    })
}

/// A folder that GNU tar packs.
fn by_tar(folder: &Path, options: &[&str]) -> Result<Image> {
    let tree = folder.join("tree");
    fs::create_dir(&tree).context("making a tree")?;
    for (name, pieces, size) in [
        ("sparse", &[(5000, 3), (1 << 20, 3000)][..], (3 << 20) + 17),
        ("hole", &[], 123_456),
        ("end", &[(99_999, 1)], 100_000),
        ("plain", &[(0, 2000)], 2000),
    ] {
        let file = File::create(tree.join(name)).context("making a file")?;
        file.set_len(size).context("making a file")?;
        for (offset, len) in pieces {
            file.write_all_at(&noise(*len), *offset).context("writing a file")?;
        }
    }
    let many = File::create(tree.join("many")).context("making a file")?;
    for index in 0..60 {
        many.write_all_at(b"piece", index * 65_536 + 100).context("writing a file")?;
    }
    fs::hard_link(tree.join("plain"), tree.join("hard")).context("making a link")?;
    link("x".repeat(300), tree.join("link")).context("making a link")?;
    mkfifo(&tree.join("fifo"), Mode::from_bits_truncate(0o640)).context("making a FIFO")?;
    chown(tree.join("plain"), Some(1000), Some(70_000)).context("giving a file away")?;
    let archive = folder.join("archive.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&tree).arg("-cf").arg(&archive).args(options).arg(".");
    output(&mut tar)?;
    let archive = fs::read(&archive).context("reading the archive")?;
    layout::write(folder.join("layout"), &[Layer::gzip(archive)?]).map(Image::layout)
}

/// An image that umoci makes: a part of this machine's files, and what is hidden of them again.
fn inserted(folder: &Path) -> Result<PathBuf> {
    let image = folder.join("inserted");
    let name = tagged(&image);
    run("umoci", ["init", "--layout"].map(OsStr::new).into_iter().chain([image.as_os_str()]))?;
    run("umoci", ["new", "--image"].map(OsStr::new).into_iter().chain([name.as_os_str()]))?;
    for insert in [
        &["/etc", "/etc"][..],
        &["/usr/share/zoneinfo/Asia", "/usr/share/zoneinfo/Asia"],
        &["/usr/share/zoneinfo/Europe", "/usr/share/zoneinfo/Europe"],
        &["/etc/default", "/opt/a/b"],
        &["--whiteout", "/usr/share/zoneinfo/Europe"],
        &["--opaque", "/etc/default", "/etc"],
    ] {
        let options = ["insert", "--image"].map(OsStr::new).into_iter().chain([name.as_os_str()]);
        run("umoci", options.chain(insert.iter().map(OsStr::new)))?;
    }
    Ok(image)
}

/// The image of umoci in another form, made by skopeo.
fn copied(folder: &Path, transport: &str, name: &str, options: &[&str]) -> Result<Image> {
    let umoci = inserted(folder)?;
    let kite = folder.join(name);
    let mut from = Path::new("oci:").as_os_str().to_owned();
    from.push(tagged(&umoci));
    let mut to = Path::new(transport).as_os_str().to_owned();
    // A name in an archive has to be one of a registry's.
    to.push(if transport.starts_with("docker") { kite_named(&kite) } else { tagged(&kite) });
    let mut skopeo = Command::new("skopeo");
    output(skopeo.args(["--insecure-policy", "copy", "--quiet"]).args(options).arg(from).arg(to))?;
    Ok(Image { kite, umoci })
}

fn kite_named(archive: &Path) -> PathBuf {
    let mut name = archive.as_os_str().to_owned();
    name.push(":test.example/image:t");
    name.into()
}

/// An image that buildah makes, in two layers of which the second changes, hides and replaces what the first has.
fn buildah(folder: &Path) -> Result<Image> {
    let policy = folder.join("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).context("writing a policy")?;
    let context = folder.join("context");
    fs::create_dir_all(context.join("sub")).context("making a tree")?;
    for name in ["file", "hidden", "sub/x"] {
        fs::write(context.join(name), name).context("writing a file")?;
    }
    fs::hard_link(context.join("file"), context.join("hard")).context("making a link")?;
    link("file", context.join("link")).context("making a link")?;
    let buildah = |arguments: &[&OsStr]| {
        let mut buildah = Command::new("buildah");
        let [root, runroot] = ["root", "runroot"].map(|name| folder.join(name));
        buildah.arg("--root").arg(root).arg("--runroot").arg(runroot).args(["--storage-driver", "vfs"]);
        output(buildah.args(arguments)).map(|said| said.trim().to_owned())
    };
    let [from, copy, commit, mount, push] = ["from", "copy", "commit", "mount", "push"].map(OsStr::new);
    let policy = [OsStr::new("--signature-policy"), policy.as_os_str()];
    let container = buildah(&[from, policy[0], policy[1], OsStr::new("scratch")])?;
    let container = OsStr::new(&container);
    buildah(&[
        copy,
        OsStr::new("--chown"),
        OsStr::new("1:2"),
        container,
        context.as_os_str(),
        OsStr::new("/etc"),
    ])?;
    buildah(&[commit, policy[0], policy[1], container, OsStr::new("one")])?;
    let root = PathBuf::from(buildah(&[mount, container])?);
    let etc = root.join("etc");
    fs::remove_file(etc.join("hidden")).context("removing a file")?;
    fs::remove_dir_all(etc.join("sub")).context("removing a folder")?;
    fs::create_dir(etc.join("sub")).context("making a folder")?;
    fs::write(etc.join("sub/new"), "new").context("writing a file")?;
    let setcap = host::program("setcap").context("there is no setcap")?;
    output(Command::new(setcap).arg("cap_net_raw+ep").arg(etc.join("sub/new")))?;
    run("mknod", [root.join("null").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()])?;
    buildah(&[commit, policy[0], policy[1], container, OsStr::new("two")])?;
    let layout = folder.join("layout");
    let mut to = Path::new("oci:").as_os_str().to_owned();
    to.push(tagged(&layout));
    buildah(&[push, policy[0], policy[1], OsStr::new("two"), &to])?;
    Ok(Image::layout(layout))
}
