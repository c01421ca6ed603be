//! Different hostile layers at once, more of them than are converted at a time: what they take together.
//!
//! A budget that is kept by each layer alone may be broken by several: by what is counted late, by what freed memory leaves
//! behind in the allocator, by what the server itself does for each.

use std::time::{Duration, Instant};

use headstart_layer_format::api::{ImageStatus, LayerState, LayerStatus};
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{
    Compression, Flavor, Meta, Oracle, Rng, SyntheticImage, SyntheticLayer, TarWriter, pax_record,
};
use headstart_loadtest::origin::{Auth, Origin};

use crate::growing::GROWING;
use crate::support::{REPOSITORY, UPSTREAM, binary::Binary};
use crate::{MIB, built, entry, tar};

/// What the server may have besides `ingest.memory_bytes_max`, however many layers there are: connections, fetches, the
/// index's cache, and what the allocator keeps.
const BESIDE: usize = 40 * MIB;
const TIMEOUT: Duration = Duration::from_secs(420);

/// Of `/proc/PID/status`, in bytes.
fn memory(pid: u32, what: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    let kib: usize = line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

fn grown(write: fn(&mut TarWriter, usize), size: usize, compression: Compression) -> SyntheticLayer {
    let mut writer = TarWriter::new();
    write(&mut writer, size);
    SyntheticLayer::of_tar(writer.finish(), compression, Oracle::default())
}

/// What else is hostile: the verdict is no matter.
fn others() -> Vec<(&'static str, SyntheticLayer)> {
    let zstd = |bytes: Vec<u8>, window: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.window_log(window).unwrap();
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        let blob = encoder.finish().unwrap();
        SyntheticLayer::of_tar(blob, Compression::Plain, Oracle::default())
    };
    let noise = |seed| {
        tar(|w| entry(w, b"noise", b'0', b"", &Rng::new(seed).bytes(24 * MIB)))
            .tar
            .to_vec()
    };
    let deep = "d/".repeat(900);
    vec![
        (
            "zeros",
            built(|b| _ = b.file("zeros", Meta::default(), vec![0; 48 * MIB])),
        ),
        ("zeros as zstd", zstd(vec![0; 48 * MIB], 23)),
        ("a large window", zstd(noise(1), 23)),
        ("a window that is too large", zstd(noise(2), 27)),
        (
            "hard links",
            tar(|w| {
                entry(w, b"f", b'0', b"", b"x");
                (0..40_000).for_each(|i| entry(w, format!("l{i}").as_bytes(), b'1', b"f", b""));
            }),
        ),
        (
            "hard links before their target",
            tar(|w| (0..40_000).for_each(|i| entry(w, format!("l{i}").as_bytes(), b'1', b"later", b""))),
        ),
        (
            "deep directories",
            tar(|w| (0..60).for_each(|i| entry(w, format!("{i}/{deep}f").as_bytes(), b'0', b"", b""))),
        ),
        (
            "extended headers of a MiB",
            tar(|w| {
                for i in 0..24 {
                    let record = pax_record(b"comment", &Rng::new(i).bytes(MIB - 64));
                    entry(w, b"pax", b'x', b"", &record);
                    entry(w, format!("f{i}").as_bytes(), b'0', b"", b"");
                }
            }),
        ),
        (
            "whiteouts",
            tar(|w| (0..40_000).for_each(|i| entry(w, format!("d{i}/.wh.x").as_bytes(), b'0', b"", b""))),
        ),
        ("half of a layer", {
            let whole = built(|b| _ = b.file("noise", Meta::default(), Rng::new(7).bytes(16 * MIB))).blob;
            SyntheticLayer::of_tar(whole[..whole.len() / 2].to_vec(), Compression::Plain, Oracle::default())
        }),
    ]
}

/// `HEADSTART_HOSTILE_FULL=1`: at the default budget.
#[tokio::test(flavor = "multi_thread")]
async fn different_layers_at_once_stay_within_the_configuration_together() {
    let full = std::env::var_os("HEADSTART_HOSTILE_FULL").is_some();
    // Of one kind as much as still fits, alone; and what does not.
    let (budget, window, fits, too_much) = match full {
        true => (192 * MIB, 32 * MIB, 2, 1),
        false => (64 * MIB, 8 * MIB, 16, 6),
    };
    let mut layers = others();
    for (at, (what, kind)) in GROWING.into_iter().enumerate() {
        let compression = if at % 2 == 0 {
            Compression::Gzip
        } else {
            Compression::Zstd
        };
        layers.push((what, grown(kind.write, kind.fits / fits, compression)));
        if at % 3 == 0 && kind.too_much > 0 {
            layers.push((what, grown(kind.write, kind.too_much / too_much, compression)));
        }
    }
    let origin = Origin::start(Auth::Anonymous);
    let config = format!(
        "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n\
         [ingest]\nmemory_bytes_max = {budget}\nzstd_window_bytes_max = {window}\nratio_floor_bytes = {}\n",
        origin.url(),
        32 * MIB
    );
    let server = Binary::start(&config, "", &[]);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path: String| {
        let answer = http.get(server.url(&path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.bytes().await.unwrap()
    };
    // One image each: none waits for the others of its image, and small and large ones meet.
    let images: Vec<_> = layers
        .iter()
        .map(|(_, layer)| SyntheticImage::new(Flavor::Oci, vec![layer.clone()]))
        .collect();
    let idle = memory(server.pid(), "VmRSS");
    for (i, image) in images.iter().enumerate() {
        image.push(&origin, REPOSITORY, &i.to_string());
        get(format!(
            "/v2/{REPOSITORY}/manifests/{}?ns={UPSTREAM}",
            image.manifest_digest
        ))
        .await;
    }
    let begun = Instant::now();
    let (mut most_at_once, mut found): (usize, Vec<LayerStatus>) = (0, Vec::new());
    loop {
        found.clear();
        for image in &images {
            let status = get(routes::image(&image.manifest_digest)).await;
            let status: ImageStatus = serde_json::from_slice(&status).unwrap();
            found.extend(status.layers);
        }
        let count = |state| found.iter().filter(|layer| layer.state == state).count();
        most_at_once = most_at_once.max(count(LayerState::Converting));
        if count(LayerState::Ready) + count(LayerState::Refused) == images.len() {
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "{found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let more = memory(server.pid(), "VmHWM") - idle;
    println!(
        "{} layers, {most_at_once} at once, in {:.1} s: {} MiB idle, {} MiB more at most, {} MiB left",
        layers.len(),
        begun.elapsed().as_secs_f64(),
        idle / MIB,
        more / MIB,
        (memory(server.pid(), "VmRSS") - idle.min(memory(server.pid(), "VmRSS"))) / MIB
    );
    for ((what, layer), found) in layers.iter().zip(&found) {
        println!(
            "{what}: {} MiB: {:?} {:?}",
            layer.blob.len() / MIB,
            found.state,
            found.reason
        );
    }
    let refused = found.iter().filter(|layer| layer.state == LayerState::Refused).count();
    assert!(
        refused > 5 && refused < layers.len() - 5 && most_at_once >= 2,
        "{found:#?}"
    );
    assert!(more <= budget + BESIDE, "{} MiB", more / MIB);
    // Else the budget would be bounding something else.
    assert!(more > budget / 4, "{} MiB", more / MIB);
}
