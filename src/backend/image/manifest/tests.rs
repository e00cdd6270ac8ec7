//! Documents of every kind, true ones and forged ones.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;

const CONFIG: &str = CONFIG_TYPES[0];
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Content by its digest.
#[derive(Default)]
struct Memory(HashMap<String, Vec<u8>>);

impl Memory {
    fn add(&mut self, kind: &str, value: &Value) -> Value {
        self.add_bytes(kind, value.to_string().into_bytes())
    }

    fn add_bytes(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes).to_string();
        let descriptor = json!({ "mediaType": kind, "digest": digest, "size": bytes.len() });
        self.0.insert(digest, bytes);
        descriptor
    }

    /// An image for a platform, as a descriptor of its manifest.
    fn image(&mut self, architecture: &str, layers: usize) -> Value {
        let diff_ids: Vec<_> = (0..layers).map(|it| Digest::of(format!("tar {it}").as_bytes())).collect();
        let config =
            json!({ "os": "linux", "architecture": architecture, "rootfs": { "diff_ids": diff_ids } });
        let config = self.add(CONFIG, &config);
        let layer = |it: usize| json!({ "mediaType": LAYER, "size": it, "digest": Digest::of(&[it as u8]) });
        let layers: Vec<_> = (0..layers).map(layer).collect();
        self.add(MANIFEST_TYPES[0], &json!({ "schemaVersion": 2, "config": config, "layers": layers }))
    }

    fn bytes(&self, descriptor: &Value) -> Vec<u8> {
        self.0[descriptor["digest"].as_str().unwrap()].clone()
    }
}

impl Blobs for Memory {
    fn document(&self, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
        self.0.get(descriptor.digest.as_str()).cloned().context("there is no such blob")
    }
}

fn with(mut descriptor: Value, name: &str, value: Value) -> Value {
    descriptor[name] = value;
    descriptor
}

fn for_platform(descriptor: Value, architecture: &str, variant: Option<&str>) -> Value {
    let platform = json!({ "os": "linux", "architecture": architecture, "variant": variant });
    with(descriptor, "platform", platform)
}

fn index_of(manifests: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX_TYPES[1], "manifests": manifests })
}

fn resolve_index(memory: &Memory, manifests: &[Value]) -> anyhow::Result<Image> {
    resolve(memory, index_of(manifests).to_string().into_bytes(), Some(INDEX_TYPES[1]))
}

fn error(result: anyhow::Result<Image>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn an_index_leads_to_the_image_for_this_machine() {
    let mut memory = Memory::default();
    let (arm, amd) = (memory.image("arm64", 1), memory.image("amd64", 2));
    let attestation =
        with(memory.image("x", 1), "platform", json!({ "os": "unknown", "architecture": "unknown" }));
    let all = [
        attestation.clone(),
        for_platform(arm.clone(), "arm64", Some("v8")),
        for_platform(arm.clone(), "amd64", Some("v2")),
        for_platform(arm.clone(), "amd64", Some("v99")),
        for_platform(amd.clone(), "amd64", None),
    ];
    let image = resolve_index(&memory, &all).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.manifest.unwrap().to_string(), amd["digest"].as_str().unwrap());
    // Indexes may be within one another.
    let inner = memory.add(INDEX_TYPES[0], &with(index_of(&all), "mediaType", INDEX_TYPES[0].into()));
    assert_eq!(resolve_index(&memory, &[inner]).unwrap().layers.len(), 2);
    let none = resolve_index(&memory, &[attestation, for_platform(arm, "arm64", Some("v8"))]);
    assert_eq!(error(none), "it has no image for linux/amd64, only for linux/arm64/v8");
    assert_eq!(error(resolve_index(&memory, &[])), "its index names no image");
    let both = error(resolve_index(&memory, &[amd.clone(), amd]));
    assert!(both.contains("does not say which"), "{both}");
}

#[test]
fn indexes_without_end_are_cut_off() {
    let mut memory = Memory::default();
    let mut next = memory.image("amd64", 1);
    for _ in 0..DEPTH_MAX {
        next = memory.add(INDEX_TYPES[1], &index_of(&[next]));
    }
    let bytes = memory.bytes(&next);
    assert!(error(resolve(&memory, bytes, None)).contains("indexes lead from one to the next"));
}

#[test]
fn an_image_for_another_processor_is_refused_however_it_is_named() {
    let mut memory = Memory::default();
    let arm = memory.image("arm64", 1);
    let bytes = memory.bytes(&arm);
    assert!(error(resolve(&memory, bytes, None)).contains("the image is for linux/arm64"));
    assert!(error(resolve_index(&memory, &[for_platform(arm, "amd64", None)])).contains("linux/arm64"));
}

#[test]
fn documents_that_lie_are_refused() {
    let mut memory = Memory::default();
    let amd = memory.image("amd64", 1);
    let other = memory.image("amd64", 2);
    let resolved = |descriptor: Value| error(resolve_index(&memory, &[descriptor]));
    let forged = with(amd.clone(), "digest", Digest::of(b"forged").to_string().into());
    assert!(resolved(forged).contains("no such blob"));
    assert!(resolved(with(amd.clone(), "size", 1.into())).contains("was said to have 1"));
    assert!(resolved(with(amd.clone(), "size", (5 << 20).into())).contains("at most 4194304 are read"));
    assert!(resolved(with(amd.clone(), "size", (-1).into())).contains("makes no sense"));
    assert!(resolved(with(amd.clone(), "digest", "sha256:../../etc/passwd".into())).contains("no digest"));
    let mut swapped = Memory(memory.0.clone());
    swapped.0.insert(amd["digest"].as_str().unwrap().to_owned(), memory.bytes(&other));
    let size = swapped.bytes(&amd).len();
    let swapped = resolve_index(&swapped, &[with(amd.clone(), "size", size.into())]);
    assert!(error(swapped).contains("damaged or forged"));
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let mut memory = Memory::default();
    let amd = memory.image("amd64", 1);
    let manifest: Value = serde_json::from_slice(&memory.bytes(&amd)).unwrap();
    let as_bytes = |value: &Value| value.to_string().into_bytes();
    let of = |memory: &Memory, value: &Value| error(resolve(memory, as_bytes(value), None));
    assert!(of(&memory, &json!({ "schemaVersion": 1, "fsLayers": [] })).contains("schema 1"));
    assert!(of(&memory, &json!({ "schemaVersion": 2 })).contains("no manifest"));
    assert!(of(&memory, &json!("x")).contains("makes no sense"));
    let two = with(manifest.clone(), "manifests", json!([]));
    assert!(of(&memory, &two).contains("no manifest"));
    let said = resolve(&memory, as_bytes(&with(manifest.clone(), "mediaType", "a/b".into())), Some("c/d"));
    assert!(error(said).contains("was said to be 'c/d'"));
    let helm = memory.add("application/vnd.cncf.helm.config.v1+json", &json!({}));
    assert!(of(&memory, &with(manifest.clone(), "config", helm)).contains("vnd.cncf.helm"));
    for (kind, why) in [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "some other server"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.v1.tar+lz4", "no kind"),
        ("application/x\u{1b}[2J", "no kind"),
    ] {
        let layer = json!([{ "mediaType": kind, "size": 1, "digest": Digest::of(b"") }]);
        let error = of(&memory, &with(manifest.clone(), "layers", layer));
        assert!(error.contains(why) && !error.contains('\u{1b}'), "{error}");
    }
    let none = of(&memory, &with(manifest, "layers", json!([])));
    assert!(none.contains("0 layers and a configuration for 1"), "{none}");
}

#[test]
fn a_chain_id_is_the_specification_s() {
    let mut memory = Memory::default();
    let of = |memory: &Memory, descriptor: &Value| resolve(memory, memory.bytes(descriptor), None).unwrap();
    let one = memory.image("amd64", 1);
    let one = of(&memory, &one);
    assert_eq!(one.chain_id(), one.layers[0].diff_id);
    let two = memory.image("amd64", 2);
    let two = of(&memory, &two);
    let text = format!("{} {}", two.layers[0].diff_id, two.layers[1].diff_id);
    assert_eq!(two.chain_id(), Digest::of(text.as_bytes()));
}

#[test]
fn no_bytes_make_the_way_to_an_image_panic() {
    let mut memory = Memory::default();
    let amd = memory.image("amd64", 2);
    let index = index_of(&[for_platform(amd, "amd64", Some("v2"))]).to_string().into_bytes();
    let mut random: u32 = 7;
    let mut next = move |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % below
    };
    for _ in 0..3_000 {
        let mut bytes = index.clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = b"\"{}[]:,0-\\\0\xff9"[next(13)],
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let _ = resolve(&memory, bytes.clone(), None);
        let _ = ImageConfig::parse(&bytes);
    }
}
