//! Pulls that wait for a conversion: for how long, and what is told of it meanwhile.
//!
//! In: a scripted server that converts at some pace. Out: a lazy snapshot or an ordinary one, and log lines. Invariant: a wait
//! ends when its time is up, unless the conversion gets on so well that an ordinary pull would end later.
//! Not here: the arithmetic (`snapshotter/outlook.rs`), what `status` shows (`node_tells.rs`).

mod support;

use std::time::{Duration, Instant};

use headstart_layer_format::api::LayerState;
use support::Harness;
use support::fake::FakeImage;
use support::log::Log;
use tonic::Code;

const REF: &str = "containerd.io/snapshot.ref";
/// More than one piece of a wait.
const WAIT: &str = "prepare_wait_ms = 2500";
/// To unpack it takes a node 25 s, at best.
const BYTES: u64 = 1_000_000_000;

/// An image of one layer that is being converted. Its server answers as late as it may.
async fn converting(h: &Harness) -> FakeImage {
    let image = h.node.add_image("large", &["a"], LayerState::Converting);
    let mut script = h.node.script();
    script.image_delay = Duration::from_millis(1_500);
    let layer = &mut script.images.get_mut(&image.manifest).unwrap().layers[0];
    (layer.size, layer.converted) = (Some(BYTES), Some(0));
    image
}

/// Converts so many bytes every 100 ms, until it is ready or the time is over.
async fn convert(h: &Harness, image: &FakeImage, bytes: u64, time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut script = h.node.script();
        let layer = &mut script.images.get_mut(&image.manifest).unwrap().layers[0];
        let converted = layer.converted.unwrap() + bytes;
        layer.converted = Some(converted.min(BYTES));
        if converted >= BYTES {
            layer.state = LayerState::Ready;
            return;
        }
    }
}

/// What containerd is answered, and after how long.
async fn pull(h: &Harness, image: &FakeImage) -> (Code, Duration) {
    let (chain, manifest, begun) = (image.chain_text(0), image.manifest.to_string(), Instant::now());
    let labels = [
        (REF, chain.as_str()),
        ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
    ];
    let answer = h.client.prepare("extract", "", &labels).await;
    (
        answer.map_or_else(|status| status.code(), |_| Code::Ok),
        begun.elapsed(),
    )
}

#[tokio::test]
async fn a_conversion_that_gets_on_is_waited_for_and_then_the_start_is_lazy() {
    let log = Log::capture();
    let h = Harness::start_with(WAIT).await;
    let image = converting(&h).await;
    let ((answer, waited), ()) = tokio::join!(
        pull(&h, &image),
        // It takes 8 s.
        convert(&h, &image, BYTES / 80, Duration::from_secs(60))
    );
    assert_eq!(answer, Code::AlreadyExists);
    assert!(waited > Duration::from_millis(5_000), "{waited:?}");
    let told = log.events("pull-waits-for-conversion");
    assert!(told.len() >= 2, "{told:?}");
    for event in &told {
        assert_eq!(
            (&event["bytes"], &event["layers"]),
            (&BYTES.into(), &1.into()),
            "{event}"
        );
    }
    assert_eq!(log.declines(), [""; 0]);
}

#[tokio::test]
async fn one_that_does_not_begin_or_is_slow_or_stops_is_not() {
    for (bytes, time) in [(0, 0), (1_000, 60), (BYTES / 80, 1)] {
        let log = Log::capture();
        let h = Harness::start_with(WAIT).await;
        let image = converting(&h).await;
        let work = async {
            tokio::select! {
                answer = pull(&h, &image) => answer,
                () = async {
                    convert(&h, &image, bytes, Duration::from_secs(time)).await;
                    std::future::pending().await
                } => unreachable!(),
            }
        };
        let (answer, waited) = work.await;
        assert_eq!(answer, Code::Ok, "{bytes}");
        // A piece more than its time: what there is to be seen is seen then.
        assert!(waited < Duration::from_secs(10), "{bytes}: {waited:?}");
        assert_eq!(log.declines(), ["not_ready"], "{bytes}");
    }
}
