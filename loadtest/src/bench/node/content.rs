//! The images of the node's benchmark.
//!
//! In: sizes. Out: an origin with images that are made of nothing but a seed. Invariant: no two files are equal, so nothing is
//! shared that real files would not share.
//! Not here: the image with a python in it, which is the playground's.

use crate::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage, SyntheticLayer, big_blob};
use crate::origin::{Auth, Origin};

use super::NodeBenchConfig;

/// The registry's name in references to these images.
pub const REGISTRY: &str = "bench.test";
pub const TAG: &str = "v1";
/// The image whose files are read.
pub const IMAGE: &str = "bench/node";
/// Files of one directory.
pub const FILES_A_DIRECTORY: usize = 100;
/// Small files have up to this.
const FILE_BYTES_MAX: u64 = 4096;
/// Layers of one of the images that only count.
const LAYERS_MAX: usize = 20;

#[derive(Debug)]
pub struct Content {
    pub origin: Origin,
    pub image: SyntheticImage,
    /// Images of small layers: repository, and how many layers there are with this one and those before.
    pub narrow: Vec<(String, SyntheticImage, usize)>,
    /// Images of one wide layer each.
    pub wide: Vec<(String, SyntheticImage)>,
}

impl Content {
    pub fn new(config: &NodeBenchConfig) -> Self {
        let origin = Origin::start(Auth::Anonymous);
        let push = |repository: &str, layers| {
            let image = SyntheticImage::new(Flavor::Oci, layers);
            image.push(&origin, repository, TAG);
            image
        };
        let image = push(
            IMAGE,
            vec![small_files(1, config.files, true), big_file(config.big_bytes)],
        );
        let (mut narrow, mut count) = (Vec::new(), 0);
        let mut mounts = config.mounts.clone();
        mounts.sort_unstable();
        for to in mounts {
            while count < to {
                let layers = (to - count).min(LAYERS_MAX);
                let seeds = (count..count + layers).map(|at| 1_000 + at as u64);
                count += layers;
                let repository = format!("bench/narrow-{count}");
                let image = push(
                    &repository,
                    seeds.map(|s| small_files(s, FILES_A_DIRECTORY, true)).collect(),
                );
                narrow.push((repository, image, count));
            }
        }
        let wide = (0..config.wide_layers).map(|at| {
            let repository = format!("bench/wide-{at}");
            let image = push(&repository, vec![small_files(2_000 + at as u64, config.files, false)]);
            (repository, image)
        });
        let wide = wide.collect();
        Self {
            origin,
            image,
            narrow,
            wide,
        }
    }
}

pub fn reference(repository: &str) -> String {
    format!("{REGISTRY}/{repository}:{TAG}")
}

/// Directories of small files, two levels deep.
fn small_files(seed: u64, count: usize, filled: bool) -> SyntheticLayer {
    let (mut layer, mut rng) = (LayerBuilder::new(Dialect::Ustar), Rng::new(seed));
    let top = format!("tree-{seed}");
    layer.dir(&top, Meta::mode(0o755));
    let mut directory = String::new();
    for at in 0..count {
        if at % (FILES_A_DIRECTORY * 10) == 0 {
            layer.dir(
                format!("{top}/part-{}", at / (FILES_A_DIRECTORY * 10)),
                Meta::mode(0o755),
            );
        }
        if at % FILES_A_DIRECTORY == 0 {
            let group = at / FILES_A_DIRECTORY;
            directory = format!("{top}/part-{}/group-{group}", group / 10);
            layer.dir(&directory, Meta::mode(0o755));
        }
        let len = match filled {
            true => 1 + rng.below(FILE_BYTES_MAX),
            false => 8,
        };
        let bytes = rng.bytes(len as usize);
        layer.file(format!("{directory}/file-{at}.txt"), Meta::mode(0o644), bytes);
    }
    layer.finish(Compression::Plain)
}

fn big_file(bytes: u64) -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Ustar);
    layer.file(super::rows::BIG, Meta::mode(0o644), big_blob(7, bytes));
    layer.finish(Compression::Plain)
}
