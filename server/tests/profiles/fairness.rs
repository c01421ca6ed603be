//! Nodes that start at once: how they share what the server sends.
//!
//! In: nodes that each take their stream as fast as it comes, over one link or within the configured rate. Out: who has got how
//! much when the first has got a lot.
//! Not here: turns at the disk, which need a disk that is slower than the test (`src/http/streams.rs`).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures_util::StreamExt as _;
use headstart_layer_format::{
    profile::{Have, ProfileRequest},
    routes,
};
use headstart_loadtest::{
    corpus::SyntheticImage,
    relay::{Relay, Wire},
};
use headstart_server::config::Config;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    fleet::{File, Fleet, chunks_of, files, fleet_config, image_of, origin_of, trace_of},
    support::until,
};

const MIB: u64 = 1 << 20;

/// As much of an image as there is may be streamed.
fn of_everything(config: &mut Config) {
    config.profile.image_percent_max = 100;
    config.profile.bytes_floor = 1 << 30;
}

/// Asks for all of an image, of which a start has needed all; and how many bytes that is.
async fn learnt(fleet: &Fleet, image: &SyntheticImage, all: &[File]) -> (ProfileRequest, u64) {
    let tocs = fleet.pull(image).await;
    let needed = chunks_of(&tocs, &all.iter().collect::<Vec<_>>());
    assert_eq!(fleet.teach(1, image, &trace_of(1, &needed)).await, 204);
    let profile = fleet.status(image, "").await.profile.unwrap();
    assert_eq!(profile.chunk_count as usize, needed.len());
    let request = ProfileRequest {
        image: image.manifest_digest,
        profile: profile.digest,
        have: Have::default(),
    };
    (request, profile.bytes + 40 * u64::from(profile.chunk_count))
}

/// A stream to one node, on a connection of its own.
struct Flow {
    received: Arc<AtomicU64>,
    _reading: AbortOnDropHandle<()>,
}

impl Flow {
    fn begin(server: SocketAddr, node: u8, request: &ProfileRequest) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = http
            .post(format!("http://{server}{}", routes::CHUNKS))
            .header("x-forwarded-for", format!("10.0.0.{node}"))
            .json(request);
        let received = Arc::<AtomicU64>::default();
        let counted = received.clone();
        let reading = async move {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.bytes_stream();
            while let Some(piece) = body.next().await {
                counted.fetch_add(piece.unwrap().len() as u64, Relaxed);
            }
        };
        Self {
            received,
            _reading: AbortOnDropHandle::new(tokio::spawn(reading)),
        }
    }

    fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

fn all(flows: &[Flow]) -> Vec<u64> {
    flows.iter().map(Flow::received).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_the_servers_link_and_a_small_start_does_not_wait_for_large_ones() {
    const NODES: u8 = 4;
    let (many, few) = (files(40), files(1));
    let (large, small) = (image_of(&many), image_of(&few));
    let origin = origin_of(&[&large, &small]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = fleet_config(&origin, dir.path());
    of_everything(&mut config);
    // Fewer than there are nodes.
    config.profile.reads_max = 2;
    let fleet = Fleet::with(config).await;
    let (large, large_bytes) = learnt(&fleet, &large, &many).await;
    let (small, small_bytes) = learnt(&fleet, &small, &few).await;
    assert!(large_bytes > 30 * MIB && small_bytes < 2 * MIB);

    // All that the server sends: 16 MB/s.
    let wire = Wire::new("1/128".parse().unwrap());
    let links: Vec<Relay> = (0..=NODES)
        .map(|_| Relay::on(&wire, fleet.server.address).unwrap())
        .collect();
    let begin = |node: u8, request| Flow::begin(links[usize::from(node)].address(), node, request);
    let flows: Vec<Flow> = (0..NODES).map(|node| begin(node, &large)).collect();
    until("all of them flow", || all(&flows).iter().all(|bytes| *bytes > MIB)).await;

    let before = all(&flows);
    let late = begin(NODES, &small);
    until("the small one is over", || late.received() == small_bytes).await;
    let meanwhile: Vec<u64> = all(&flows).iter().zip(&before).map(|(now, then)| now - then).collect();
    assert!(
        meanwhile.iter().all(|bytes| *bytes < large_bytes / 2),
        "{meanwhile:?} of {large_bytes} came to the others before it was over"
    );

    let far = |flows: &[Flow]| all(flows).into_iter().max() > Some(18 * MIB);
    until("one of them is far", || far(&flows)).await;
    let shares = all(&flows);
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(least * 3 >= *most, "{shares:?}");
    drop((flows, late));
    fleet.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_many_streams_has_no_more_than_one_with_one() {
    const RATE: u64 = 4 * MIB;
    let many = files(30);
    let image = image_of(&many);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = fleet_config(&origin, dir.path());
    of_everything(&mut config);
    config.http.client_bytes_per_sec = RATE;
    let fleet = Fleet::with(config).await;
    let (request, bytes) = learnt(&fleet, &image, &many).await;
    assert!(bytes > 4 * RATE);
    let begin = |node| Flow::begin(fleet.server.address, node, &request);
    let greedy: Vec<Flow> = (0..6).map(|_| begin(2)).collect();
    until("they flow", || all(&greedy).iter().all(|bytes| *bytes > 0)).await;
    let modest = begin(3);
    // A second's worth may come at once.
    until("it gets its own", || modest.received() > 3 * RATE).await;
    let (theirs, own) = (all(&greedy), modest.received());
    assert!(theirs.iter().sum::<u64>() <= 2 * own, "{theirs:?}, and {own}");
    assert!(theirs.iter().sum::<u64>() > RATE, "{theirs:?}");
    drop((greedy, modest));
    fleet.server.stop().await;
}
