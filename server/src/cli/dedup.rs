//! `dedup`: what of an image is new after other images, cut as now and in other ways.
//!
//! In: images that a running server has, and layers from files. Out: for each image but the first, bytes and units that
//! none of those before it has. Invariant: nothing is stored, here or there; a layer that an image before has too is not
//! counted at all; what a layer repeats of itself is new once.
//! Not here: taking layers apart (`ingest/survey.rs`).

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes};
use clap::{Args, error::ErrorKind};
use futures_util::StreamExt as _;
use headstart_layer_format::BlobDigest;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{CliError, Place, client::Client, local::LocalBlob, show};
use crate::{
    admin::api,
    config::Config,
    ingest::{
        CutSizes, IngestConfig,
        survey::{Survey, Unit, Way, survey},
    },
};

/// Pieces of a blob on their way from the server, each a network read.
const PIECES_MAX: usize = 8;

/// Tells what of an image is new after other images, by ways of cutting.
///
/// Images are named as `ls` names them, and read from a running server, which must have their originals. An image may also be given as
/// its layers' files, twice:  dedup --layers FILE... -- FILE...  Nothing is stored.
#[derive(Debug, Args)]
pub struct Arguments {
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// An image that is these files: layers as a registry has them. It comes behind the IMAGEs.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    layers: Vec<PathBuf>,
    /// One more such image; the last.
    #[arg(last = true, value_name = "FILE")]
    more: Vec<PathBuf>,
    /// Also as if groups of small files had about GROUP KiB, and large files were cut every LARGE KiB. May be repeated.
    #[arg(long, value_name = "GROUP[/LARGE]", value_parser = cut_sizes)]
    cut: Vec<(String, CutSizes)>,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Place,
}

fn cut_sizes(text: &str) -> Result<(String, CutSizes), String> {
    let (group, large) = text.split_once('/').unwrap_or((text, "512"));
    let kib = |n: &str| {
        n.parse::<u64>()
            .map_err(|_| "it is GROUP or GROUP/LARGE, in KiB".to_owned())
    };
    let (group, large) = (kib(group)?, kib(large)?);
    let sizes = CutSizes::about(group, large).ok_or("sizes are from 8 to 2048 KiB, LARGE by fours")?;
    Ok((format!("chunks, if {group}/{large} KiB"), sizes))
}

struct Image {
    name: String,
    layers: Vec<Layer>,
}

struct Layer {
    digest: BlobDigest,
    size: u64,
    /// `None`: the server has it.
    file: Option<LocalBlob>,
}

/// An image after those before it.
#[derive(Debug, Serialize)]
struct Step {
    image: String,
    after: Vec<String>,
    layers_count: usize,
    /// Had by an image before, as they are; the figures are of the others.
    layers_shared: usize,
    compressed_bytes: u64,
    tar_bytes: u64,
    ways: Vec<Figures>,
}

#[derive(Debug, Serialize)]
struct Figures {
    way: String,
    bytes: u64,
    new_bytes: u64,
    new_percent: f64,
    units: u64,
    new_units: u64,
    mean_bytes: u64,
}

pub async fn run(arguments: Arguments, above: Option<&Path>) -> Result<(), CliError> {
    let files = [("--layers", &arguments.layers), ("--", &arguments.more)];
    let of_files = files.iter().filter(|(_, files)| !files.is_empty()).count();
    if arguments.images.len() + of_files < 2 {
        let text = "name two images: IMAGE, --layers FILE..., -- FILE...";
        Arguments::augment_args(clap::Command::new("dedup"))
            .error(ErrorKind::TooFewValues, text)
            .exit();
    }
    let config = Config::load(arguments.server.config.as_deref().or(above))?.ingest;
    let client = match arguments.images.is_empty() {
        true => None,
        false => Some(arguments.server.client(above)?),
    };
    let mut images = Vec::new();
    if let Some(client) = &client {
        for name in &arguments.images {
            images.push(known_image(client, name).await?);
        }
    }
    for (name, files) in files.iter().filter(|(_, files)| !files.is_empty()) {
        images.push(local_image(name, files)?);
    }
    let mut ways: Vec<(String, Way)> = vec![
        ("chunks, as cut now".into(), Way::Chunks(CutSizes::DEFAULT)),
        ("whole files".into(), Way::Files),
        ("chunks, headers left in".into(), Way::WithHeaders),
        ("bodies, cut by content".into(), Way::BodiesByContent),
        ("tar, cut by content".into(), Way::TarByContent),
    ];
    ways.extend(
        arguments
            .cut
            .into_iter()
            .map(|(name, sizes)| (name, Way::Chunks(sizes))),
    );
    let steps = compare(images, client.as_ref(), &config, &ways).await?;
    match arguments.json {
        true => show::json(&steps),
        false => steps.iter().try_for_each(print),
    }
}

async fn known_image(client: &Client, name: &str) -> Result<Image, CliError> {
    let what = api::What {
        target: name.to_owned(),
        force: false,
    };
    let known: api::ImageLayers = client.post(api::IMAGE, &what).await?;
    let mut layers = Vec::new();
    for api::ImageLayer { digest, size, here } in known.layers {
        if !here {
            let (image, layer) = (name.to_owned(), digest.to_string());
            return Err(CliError::NotHere { image, layer });
        }
        let file = None;
        layers.push(Layer { digest, size, file });
    }
    let name = name.to_owned();
    Ok(Image { name, layers })
}

fn local_image(option: &str, files: &[PathBuf]) -> Result<Image, CliError> {
    let mut layers = Vec::new();
    for file in files {
        let blob = LocalBlob::of(file)?;
        layers.push(Layer {
            digest: blob.digest,
            size: blob.size,
            file: Some(blob),
        });
    }
    let name = format!("files behind {option}");
    Ok(Image { name, layers })
}

/// What has been seen, by one way of cutting.
#[derive(Default)]
struct Held {
    keys: HashSet<u128>,
    units: u64,
    new_units: u64,
    bytes: u64,
    new_bytes: u64,
}

impl Held {
    fn add(&mut self, units: Vec<Unit>) {
        for unit in units {
            self.units += 1;
            self.bytes += unit.len;
            if self.keys.insert(unit.key) {
                self.new_units += 1;
                self.new_bytes += unit.len;
            }
        }
    }

    /// The figures since the last time.
    fn take(&mut self, way: &str) -> Figures {
        let keys = std::mem::take(&mut self.keys);
        let since = std::mem::replace(
            self,
            Self {
                keys,
                ..Self::default()
            },
        );
        Figures {
            way: way.to_owned(),
            bytes: since.bytes,
            new_bytes: since.new_bytes,
            new_percent: 100.0 * since.new_bytes as f64 / since.bytes.max(1) as f64,
            units: since.units,
            new_units: since.new_units,
            mean_bytes: since.bytes / since.units.max(1),
        }
    }
}

async fn compare(
    images: Vec<Image>,
    client: Option<&Client>,
    config: &IngestConfig,
    ways: &[(String, Way)],
) -> Result<Vec<Step>, CliError> {
    let mut held: Vec<Held> = ways.iter().map(|_| Held::default()).collect();
    let mut seen = HashSet::new();
    let (mut steps, mut before) = (Vec::new(), Vec::new());
    for image in images {
        let layers_count = image.layers.len();
        let known = seen.clone();
        let (mut layers_shared, mut compressed_bytes, mut tar_bytes) = (0, 0, 0);
        for layer in image.layers {
            if !seen.insert(layer.digest) {
                layers_shared += usize::from(known.contains(&layer.digest));
                continue;
            }
            let taken = take_apart(layer, client, config, ways).await?;
            compressed_bytes += taken.compressed_bytes;
            tar_bytes += taken.tar_bytes;
            for (held, units) in held.iter_mut().zip(taken.units) {
                held.add(units);
            }
        }
        let figures = held.iter_mut().zip(ways).map(|(held, (name, _))| held.take(name));
        steps.push(Step {
            image: image.name.clone(),
            after: before.clone(),
            layers_count,
            layers_shared,
            compressed_bytes,
            tar_bytes,
            ways: figures.collect(),
        });
        before.push(image.name);
    }
    // Everything of the first is new.
    steps.remove(0);
    Ok(steps)
}

async fn take_apart(
    layer: Layer,
    client: Option<&Client>,
    config: &IngestConfig,
    ways: &[(String, Way)],
) -> Result<Survey, CliError> {
    let digest = layer.digest;
    let ways: Vec<Way> = ways.iter().map(|(_, way)| way.clone()).collect();
    let config = config.clone();
    let (original, mut pump): (Box<dyn Read + Send>, _) = match (&layer.file, client) {
        (Some(file), _) => (Box::new(file.open()?), None),
        (None, Some(client)) => {
            let answer = client.read(&format!("{}/{digest}", api::ORIGINALS)).await?;
            let (pieces, received) = mpsc::channel(PIECES_MAX);
            let pump = tokio::spawn(async move {
                let mut body = answer.bytes_stream();
                while let Some(piece) = body.next().await {
                    let piece = piece.map_err(io::Error::other);
                    // Whoever stopped reading has its reason.
                    if pieces.send(piece).await.is_err() {
                        return;
                    }
                }
            });
            let piece = Bytes::new();
            (Box::new(Pieces { received, piece }), Some(pump))
        }
        (None, None) => return Err(CliError::Refused(format!("read layer {digest} without a server"))),
    };
    let taken = tokio::task::spawn_blocking(move || survey(original, &digest, &config, &ways)).await?;
    if let Some(pump) = pump.take() {
        pump.abort();
    }
    taken.map_err(|error| CliError::Survey {
        layer: format!("{digest} ({} bytes)", layer.size),
        error,
    })
}

/// A body as a synchronous reader.
struct Pieces {
    received: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.received.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buf.len());
        self.piece.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

fn print(step: &Step) -> Result<(), CliError> {
    show::line(&format!("{} after {}", step.image, step.after.join(", ")))?;
    show::line(&format!(
        "{} of {} layers are other ones: {}, {} unpacked",
        step.layers_count - step.layers_shared,
        step.layers_count,
        show::size(step.compressed_bytes),
        show::size(step.tar_bytes),
    ))?;
    let mut table = show::table(&["CUT", "BYTES", "NEW", "NEW %", "UNITS", "NEW", "MEAN"]);
    for way in &step.ways {
        table.add_row([
            way.way.clone(),
            show::size(way.bytes),
            show::size(way.new_bytes),
            format!("{:.1}", way.new_percent),
            way.units.to_string(),
            way.new_units.to_string(),
            show::size(way.mean_bytes),
        ]);
    }
    show::line(&table.to_string())
}
