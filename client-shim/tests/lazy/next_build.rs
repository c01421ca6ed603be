//! The next build of an image, after a start of the one before: on the node that has that one, and on a fresh one. Real server,
//! real mounts; bytes are what a relay counts.

use std::collections::HashSet;

use headstart_layer_format::profile::{Origin, Profile};
use headstart_layer_format::toc::Chunk;
use headstart_layer_format::{ChunkDigest, Toc, routes};
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage};
use headstart_loadtest::relay::{LinkShape, Relay, Wire};
use headstart_shim::profile::state::{Progress, Telling};

use crate::support::starter::{Starter, learned, patient, status};
use crate::support::{Converted, noise};

const FILE: usize = 60_000;
const LARGE: usize = 2 << 20;
const BASE: u64 = 40;
const LIBRARIES: u64 = 120;
/// Of every so many libraries a start reads one.
const READ_EVERY: usize = 3;
/// Libraries that are other ones in the second build; the first two are read.
const CHANGED: [u64; 3] = [30, 60, 61];

/// Path and bytes of what is in the layer of libraries.
fn libraries(build: u64) -> Vec<(String, Vec<u8>)> {
    let seed = |i: u64| 1000 + i + if CHANGED.contains(&i) { build * 10_000 } else { 0 };
    let mut files: Vec<_> = (0..LIBRARIES)
        .map(|i| (format!("lib/{i:03}"), noise(FILE, seed(i))))
        .collect();
    // A long one, changed in its middle.
    let mut large = noise(LARGE, 5000);
    large[LARGE / 2..][..1000].copy_from_slice(&noise(1000, 5000 + build));
    files.push(("lib/large".to_owned(), large));
    if build > 1 {
        // Comes before others, which are at other places from there on.
        files.insert(45, ("lib/044-new".to_owned(), noise(FILE, 7000)));
    }
    files
}

fn base() -> Vec<(String, Vec<u8>)> {
    (0..BASE).map(|i| (format!("base/{i:02}"), noise(FILE, i))).collect()
}

fn application(build: u64) -> Vec<(String, Vec<u8>)> {
    vec![("app/main".to_owned(), noise(FILE, 9000 + build))]
}

fn image(build: u64) -> SyntheticImage {
    let layer = |files: Vec<(String, Vec<u8>)>| {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        layer.dir(files[0].0.split('/').next().unwrap(), Meta::mode(0o755));
        for (path, bytes) in files {
            layer.file(path, Meta::mode(0o644), bytes);
        }
        layer.finish(Compression::Gzip)
    };
    let layers = [base(), libraries(build), application(build)].map(layer);
    SyntheticImage::new(Flavor::Oci, layers.into())
}

/// A container of this build starts: some of the base, some of the libraries, the application.
fn start(starter: &Starter, container: &str, build: u64) {
    starter.container(container);
    let read = |layer: usize, (path, bytes): &(String, Vec<u8>)| {
        assert!(
            std::fs::read(starter.dirs[layer].join(path)).unwrap() == *bytes,
            "{path}"
        );
    };
    base().iter().step_by(4).for_each(|file| read(0, file));
    for file in &libraries(build) {
        let is_new = file.0.contains("new");
        // By what they are called, which is the same in every build.
        let number: Option<usize> = file.0.trim_start_matches("lib/").parse().ok();
        if is_new || number.is_none_or(|n| n % READ_EVERY == 0) {
            read(1, file);
        }
    }
    read(2, &application(build)[0]);
}

fn tocs(server: &Converted, image: &SyntheticImage) -> Vec<Toc> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let toc = async |layer| {
        let url = format!("{}{}", server.url, routes::layer_toc(layer));
        let bytes = http.get(url).send().await.unwrap().bytes().await.unwrap();
        Toc::decode(&bytes).unwrap()
    };
    let layers = image.layers.iter();
    layers.map(|l| runtime.block_on(toc(&l.digest))).collect()
}

fn chunks(profile: &Profile, tocs: &[Toc]) -> Vec<Chunk> {
    let chunk = |(layer, index): (u32, u32)| tocs[layer as usize].chunks().chunk(index).unwrap();
    profile.positions().map(chunk).collect()
}

#[test]
fn the_next_build_costs_what_is_new_in_it_and_a_fresh_node_profits_from_the_one_before() {
    let (v1, v2) = (image(1), image(2));
    let server = Converted::start(&v1);
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let link = || Relay::on(&Wire::new(LinkShape::default()), address).unwrap();
    let own_link = link();
    let mut node = Starter::prepare(&own_link.url(), &v1, &patient());
    node.until("nobody knows anything", |p| p.progress == Progress::NoProfile);
    start(&node, "one", 1);
    assert_eq!(node.told("one").trace, Telling::Posted);
    server.next(&v2, "v2");

    // A node that has nothing.
    let fresh_link = link();
    let fresh = Starter::prepare(&fresh_link.url(), &v2, &patient());
    let derived = fresh.status.profile.clone().expect("what the one before needed");
    assert_eq!((derived.origin, derived.starts), (Origin::Derived, 1));
    let done = fresh.ended();
    assert_eq!(done.progress, Progress::Done);
    assert_eq!(done.received_chunks, u64::from(derived.chunk_count));
    let counters = fresh.node.counters();
    assert_eq!(counters.fetched_bytes.get(), derived.bytes);
    start(&fresh, "fresh", 2);
    let demanded = counters.fetched_bytes.get() - derived.bytes;
    assert!(demanded > 0, "there is something that the first build had not");

    // The node that has the one before.
    let counters = node.node.counters();
    let (before, wire) = (counters.fetched_bytes.get(), own_link.traffic());
    node.prepare_next(&v2);
    assert_eq!(node.status.profile.as_ref().unwrap().origin, Origin::Derived);
    let done = node.ended();
    assert_eq!(done.progress, Progress::Done);
    start(&node, "two", 2);
    let moved = counters.fetched_bytes.get() - before;
    let on_the_wire = own_link.traffic().since(&wire).down_bytes;
    assert_eq!(node.told("two").trace, Telling::Posted);
    assert_eq!(counters.read_errors.get(), 0);

    // What this build needs by its own start, and the one before has not.
    let own = learned(status(&node.node, &server.url, &v2));
    let (old, new) = (tocs(&server, &v1), tocs(&server, &v2));
    let here: HashSet<ChunkDigest> = old.iter().flat_map(|t| t.chunks().iter().map(|c| c.digest)).collect();
    let needed = chunks(&own, &new);
    let needed_bytes: u64 = needed.iter().map(|c| c.frame.len).sum();
    let lacking = needed.iter().filter(|c| !here.contains(&c.digest));
    let lacking: u64 = lacking.map(|c| c.frame.len).sum();
    assert!(lacking > 0 && lacking * 3 < needed_bytes, "{lacking} of {needed_bytes}");
    // Of that, what was changed had come to the fresh node by its path; what is nowhere in the first build had not.
    assert!(demanded * 2 <= lacking, "{demanded} of {lacking} were waited for");
    assert!(
        (lacking..=lacking * 6 / 5).contains(&moved),
        "{moved} bytes came for {lacking} new ones"
    );
    // Two TOCs are new, and there is a profile.
    let described: usize = new[1..].iter().map(|t| t.encode().unwrap().len()).sum();
    let described = described as u64 + (64 << 10);
    assert!(
        on_the_wire <= lacking * 6 / 5 + described,
        "{on_the_wire} for {lacking} and {described}"
    );
}
