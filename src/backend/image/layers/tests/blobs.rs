//! Layers as blobs: compression, digests, limits, and what an image is made of.

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::fs::FileExt;

use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// A zstd frame to be skipped.
fn skippable(len: u32) -> Vec<u8> {
    [&0x184d_2a5a_u32.to_le_bytes()[..], &len.to_le_bytes(), &vec![b's'; len as usize]].concat()
}

fn sample() -> Vec<u8> {
    archive(&[file("noise", noise(300_000, 9)), file("zeros", vec![0; 1 << 20]), directory("folder")])
}

fn compressed(bytes: Vec<u8>, compression: Compression) -> Result<Made> {
    let digest = Digest::of(&bytes);
    build_all(vec![blob(bytes, compression, Some(digest), Digest::of(&sample()))], &Limits::default())
}

#[test]
fn a_layer_is_the_same_whatever_it_is_compressed_with() {
    let bytes = sample();
    let (first, rest) = bytes.split_at(200_001);
    let content = |made: &Made| {
        let mut image = vec![0; made.summary.size as usize];
        made.file.read_exact_at(&mut image, 0).unwrap();
        image
    };
    let expected = content(&compressed(bytes.clone(), Compression::None).unwrap());
    for (what, blob, compression) in [
        ("gzip", gzip(&bytes), Compression::Gzip),
        ("gzip members", [gzip(first), gzip(b""), gzip(rest)].concat(), Compression::Gzip),
        ("zstd", zstd(&bytes), Compression::Zstd),
        ("zstd frames", [zstd(first), zstd(b""), zstd(rest)].concat(), Compression::Zstd),
        (
            "skippable frames",
            [skippable(0), zstd(first), skippable(300_000), skippable(1), zstd(rest), skippable(7)].concat(),
            Compression::Zstd,
        ),
    ] {
        let made = compressed(blob, compression).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(content(&made) == expected, "{what}");
    }
}

#[test]
fn compressed_layers_that_are_damaged_are_refused() {
    let (gz, zst) = (gzip(&sample()), zstd(&sample()));
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x55;
        bytes
    };
    for (what, blob, compression) in [
        ("nothing", Vec::new(), Compression::Gzip),
        ("gzip, cut", gz[..gz.len() / 2].to_vec(), Compression::Gzip),
        ("gzip without its end", gz[..gz.len() - 1].to_vec(), Compression::Gzip),
        ("gzip, damaged", flipped(&gz, gz.len() / 2), Compression::Gzip),
        ("gzip and something else", [&gz[..], b"garbage"].concat(), Compression::Gzip),
        ("zstd, cut", zst[..zst.len() / 2].to_vec(), Compression::Zstd),
        ("zstd without its end", zst[..zst.len() - 1].to_vec(), Compression::Zstd),
        ("zstd, damaged", flipped(&zst, zst.len() / 2), Compression::Zstd),
        ("zstd with another checksum", flipped(&zst, zst.len() - 1), Compression::Zstd),
        ("zstd and something else", [&zst[..], b"garbage"].concat(), Compression::Zstd),
        ("a skippable frame, cut", [&zst[..], &skippable(10)[..12]].concat(), Compression::Zstd),
        ("one in the other", gz, Compression::Zstd),
        ("plain as gzip", sample(), Compression::Gzip),
        ("gzip as plain", zst, Compression::None),
    ] {
        let error = compressed(blob, compression).err().unwrap_or_else(|| panic!("{what} was taken"));
        assert!(format!("{error:#}").starts_with("layer 1 ("), "{error:#}");
    }
}

#[test]
fn what_has_another_digest_is_refused() {
    let bytes = sample();
    let blob_of = |bytes: Vec<u8>, compression, digest, diff_id| {
        build_all(vec![blob(bytes, compression, digest, diff_id)], &Limits::default())
    };
    let right = Digest::of(&bytes);
    let wrong = Digest::of(b"other");
    let packed = gzip(&bytes);
    let error = |made: Result<Made>| format!("{:#}", made.err().unwrap());
    let message = error(blob_of(packed.clone(), Compression::Gzip, Some(Digest::of(&packed)), wrong.clone()));
    assert!(message.contains("what is in it") && message.contains(&wrong.to_string()), "{message}");
    let message = error(blob_of(packed, Compression::Gzip, Some(wrong.clone()), right.clone()));
    assert!(message.contains(&format!("not {wrong}")), "{message}");
    assert!(blob_of(bytes.clone(), Compression::None, Some(wrong.clone()), right.clone()).is_err());
    assert!(blob_of(bytes.clone(), Compression::None, Some(right.clone()), wrong).is_err());
    // What follows the archive's end is a part of the layer.
    let longer = [&bytes[..], b"more"].concat();
    assert!(blob_of(longer.clone(), Compression::None, None, right).is_err());
    let diff_id = Digest::of(&longer);
    blob_of(longer, Compression::None, None, diff_id).unwrap();
}

#[test]
fn the_chain_id_and_the_uuid_are_those_of_the_layers() {
    let empty = build_all(Vec::new(), &Limits::default()).unwrap();
    assert_eq!((empty.summary.chain_id, empty.summary.inodes), (None, 1));
    let (a, b) = (archive(&[file("a", "a")]), archive(&[file("b", "b")]));
    let one = build_all(vec![plain(&a)], &Limits::default()).unwrap();
    assert_eq!(one.summary.chain_id, Some(Digest::of(&a)));
    let two = build_all(vec![plain(&a), plain(&b)], &Limits::default()).unwrap();
    let chain = Digest::of(format!("{} {}", Digest::of(&a), Digest::of(&b)).as_bytes());
    let uuid = uuid(Some(&chain));
    assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
    let mut read = [0; 16];
    two.file.read_exact_at(&mut read, 1024 + 48).unwrap();
    assert_eq!(read, uuid);
    assert_eq!(two.summary.chain_id, Some(chain));
}

#[test]
fn progress_counts_every_byte_of_the_blobs() {
    let packed = gzip(&sample());
    let len = packed.len() as u64;
    let seen = RefCell::new(Vec::new());
    let layers = || {
        let layer = blob(packed.clone(), Compression::Gzip, None, Digest::of(&sample()));
        [Ok(layer), Ok(plain(&archive(&[])))]
    };
    let file = tempfile::tempfile().unwrap();
    build(layers(), &file, &Limits::default(), &|count| seen.borrow_mut().push(count)).unwrap();
    assert_eq!(seen.borrow().iter().sum::<u64>(), len + 1024);
    assert!(seen.borrow().len() > 3);
}

#[test]
fn an_error_of_the_source_is_passed_on_and_there_is_no_image() {
    let file = tempfile::tempfile().unwrap();
    let layers = [Ok(plain(&sample())), Err(anyhow::anyhow!("no such blob"))];
    let error = build(layers, &file, &Limits::default(), &|_| {}).unwrap_err();
    assert_eq!(error.to_string(), "no such blob");
    assert!(reader::read(&file).is_err());
}

#[test]
fn every_limit_ends_with_one_clear_line() {
    let limited = |items: &[Item], limits: Limits| {
        let blobs = vec![plain(&archive(items))];
        format!("{:#}", build_all(blobs, &limits).err().expect("a limit was reached"))
    };
    let files = |count: usize| (0..count).map(|index| file(format!("{index}"), "x")).collect::<Vec<_>>();
    let limits = Limits::default();
    let error = limited(&files(11), Limits { entries: 10, ..limits });
    assert!(error.ends_with("entry '10': the layers have more than 10 entries"), "{error}");
    let error = limited(&files(10_000), Limits { memory: MIB, ..limits });
    assert!(error.contains("would take more than 1048576 bytes of memory"), "{error}");
    let error = limited(&[file("a", vec![0; 5000])], Limits { content: 4000, ..limits });
    assert!(error.contains("larger than is allowed, unpacked"), "{error}");
    let error = limited(&[file("a", vec![0; 5000])], Limits { image: 8000, ..limits });
    assert!(error.contains("image would be larger than"), "{error}");
    let huge = file("a", "").record("GNU.sparse.size", "9223372036854775807").record("GNU.sparse.map", "0,0");
    assert!(limited(&[huge], limits).contains("image would be larger than"));
    // Every name goes round through many links, and every whiteout looks at all files.
    let mut items = vec![symlink("l0", ".")];
    items.extend((1..200).map(|index| symlink(format!("l{index}"), format!("l{0}/l{0}", index - 1))));
    items.push(file("l7/a", "x"));
    assert!(build_all(vec![plain(&archive(&items))], &limits).is_ok());
    let names = (0..1000).map(|index| file(format!("l7/{index}"), "x"));
    let error = limited(&[items.clone(), names.collect()].concat(), Limits { steps: 100_000, ..limits });
    assert!(error.contains("too many steps"), "{error}");
    items.push(file("l30/a", "x"));
    assert!(limited(&items, limits).contains("too many symbolic links"));
    let marks = [files(1000), vec![whiteout(".wh..wh..opq"); 1000]].concat();
    let error = limited(&marks, Limits { steps: 100_000, ..limits });
    assert!(error.contains("too many steps"), "{error}");
    // A frame whose window is 2 GiB.
    let frame = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec();
    let blobs = vec![blob(frame, Compression::Zstd, None, Digest::of(b""))];
    let error = format!("{:#}", build_all(blobs, &limits).err().unwrap());
    assert!(error.contains("indow"), "{error}");
}
