//! kill -9 in the middle of cold pulls.
//!
//! In: an origin that is slow, clients that pull whole blobs and ranges of them; every other round a budget that is less than
//! they pull, so that originals are evicted under the kills, too. Out: every blob is right after it.
//! Invariant: a body that ended properly has the right bytes, also in the moment before a kill; what a client saw of a
//! body that broke off is a prefix of the right bytes.
//! Not here: kills in the middle of conversions ([`super::conversions`]).

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all};
use headstart_layer_format::{BlobDigest, api::ImageStatus, routes};
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage},
    origin::{Auth, Fault, Origin, Target},
};

use crate::{
    REPOSITORY, ROUNDS_A_DIRECTORY,
    files::{leftovers, originals_bytes},
    process::{Directory, Process},
    rounds, soon,
};

/// Blobs come at this rate while there is killing, so that most kills hit a fetch.
const SLOW_BYTES_PER_SEC: u64 = 6 << 20;
/// The latest moment of a kill: a little more than the slowest pull takes.
const KILL_AFTER_MS_MAX: u64 = 900;

/// Less than a round pulls, which is [`BIG_BYTES_MIN`] and two layers: its originals are evicted while it goes on.
const ORIGINALS_BYTES_MAX: u64 = BIG_BYTES_MIN;

/// Of the blob that is no layer.
const BIG_BYTES_MIN: u64 = 2 << 20;

/// What one client got: the status, the bytes, and whether the body ended properly.
async fn read(http: &reqwest::Client, url: String, range: Option<&Range<u64>>) -> Option<(u16, Vec<u8>, bool)> {
    let mut request = http.get(url);
    if let Some(range) = range {
        request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
    }
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    let mut body = response.bytes_stream();
    let mut bytes = Vec::new();
    loop {
        match body.next().await {
            Some(Ok(piece)) => bytes.extend_from_slice(&piece),
            Some(Err(_)) => return Some((status, bytes, false)),
            None => return Some((status, bytes, true)),
        }
    }
}

/// Checks an answer as far as it came. Whether it was whole.
fn check(answer: Option<(u16, Vec<u8>, bool)>, content: &Bytes, range: Option<&Range<u64>>) -> bool {
    let Some((status, bytes, ended)) = answer else {
        return false;
    };
    let wanted = match (status, range) {
        (206, Some(range)) => content.slice(range.start as usize..range.end as usize),
        (200, _) => content.clone(),
        _ => return false,
    };
    assert!(
        wanted.starts_with(&bytes),
        "wrong bytes, status {status}, range {range:?}"
    );
    assert!(
        !ended || bytes.len() == wanted.len(),
        "a body that ended too early ended properly"
    );
    ended
}

/// What one round pulls.
struct Round {
    image: SyntheticImage,
    blobs: Vec<(BlobDigest, Bytes)>,
}

impl Round {
    fn new(origin: &Origin, rng: &mut Rng) -> Self {
        let layer = |rng: &mut Rng| {
            let mut layer = LayerBuilder::new(Dialect::Pax);
            for i in 0..6 {
                let len = 1000 + rng.below(400_000) as usize;
                layer.file(format!("f{i}"), Meta::default(), rng.bytes(len));
            }
            layer.finish(Compression::Gzip)
        };
        let image = SyntheticImage::new(Flavor::Oci, vec![layer(rng), layer(rng)]);
        image.push(origin, REPOSITORY, "latest");
        let mut blobs: Vec<_> = image.layers.iter().map(|l| (l.digest, l.blob.clone())).collect();
        let len = (BIG_BYTES_MIN + rng.below(3 << 20)) as usize;
        let big = Bytes::from(rng.bytes(len));
        blobs.push((origin.add_blob(REPOSITORY, big.clone()), big));
        Self { image, blobs }
    }

    /// Clients that pull until the server is gone.
    async fn pull(self: Arc<Self>, process: Arc<Process>, http: reqwest::Client, seed: u64) {
        let mut rng = Rng::new(seed);
        let _ = http.get(process.manifest(&self.image)).send().await;
        for _ in 0..4 {
            let (digest, content) = &self.blobs[rng.below(self.blobs.len() as u64) as usize];
            let range = (rng.below(2) == 0).then(|| {
                let start = rng.below(content.len() as u64);
                start..start + 1 + rng.below(content.len() as u64 - start)
            });
            check(
                read(&http, process.blob(digest), range.as_ref()).await,
                content,
                range.as_ref(),
            );
        }
    }

    /// Everything, from a server that nobody kills.
    async fn verify(&self, process: &Process, http: &reqwest::Client) {
        for (digest, content) in &self.blobs {
            let part = 100..content.len() as u64 / 2;
            let answer = soon(read(http, process.blob(digest), Some(&part))).await;
            assert!(
                check(answer, content, Some(&part)),
                "a range of {digest} is stuck or broken"
            );
            let answer = soon(read(http, process.blob(digest), None)).await;
            assert!(check(answer, content, None), "{digest} is stuck or broken");
        }
        let manifest = soon(read(http, process.manifest(&self.image), None)).await;
        assert!(check(manifest, &self.image.manifest, None));
        let status = format!(
            "{}{}?wait_ms=20000",
            process.url,
            routes::image(&self.image.manifest_digest)
        );
        for _ in 0..5 {
            let answer = soon(http.get(&status).send()).await.unwrap();
            if answer.status() == 200 && answer.json::<ImageStatus>().await.unwrap().is_ready() {
                return;
            }
        }
        panic!("the image does not get ready after a kill");
    }
}

/// Of a round that pulled more than its budget.
async fn assert_within_budget(dir: &Path) {
    let mut kept = 0;
    for _ in 0..300 {
        kept = originals_bytes(dir);
        if kept <= ORIGINALS_BYTES_MAX {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{kept} bytes of originals are kept, of {ORIGINALS_BYTES_MAX}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_of_cold_pulls_it_comes_back_with_the_right_bytes_and_nothing_else() {
    let origin = Origin::start(Auth::Anonymous);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let rounds = rounds(6);
    let seed = u64::from(std::process::id());
    println!("{rounds} rounds, seed {seed}");
    let mut rng = Rng::new(seed);
    let mut dir = Directory::new();
    for n in 0..rounds {
        if n > 0 && n % ROUNDS_A_DIRECTORY == 0 {
            dir = Directory::new();
        }
        origin.clear_faults();
        let is_tight = n % 2 == 1;
        let budget = match is_tight {
            true => format!("[cache]\noriginals_bytes_max = {ORIGINALS_BYTES_MAX}\n"),
            false => String::new(),
        };
        let round = Arc::new(Round::new(&origin, &mut rng));
        origin.always(
            Target::Blobs,
            Fault::Throttle {
                bytes_per_sec: SLOW_BYTES_PER_SEC,
            },
        );
        // Twice, so that a fetch which was resumed is killed, too.
        for _ in 0..2 {
            let process = Arc::new(Process::start(dir.path(), &origin, &budget, &http).await);
            let clients = (0..4).map(|_| {
                let pull = round.clone().pull(process.clone(), http.clone(), rng.next_u64());
                tokio::spawn(pull)
            });
            let clients: Vec<_> = clients.collect();
            tokio::time::sleep(Duration::from_millis(rng.below(KILL_AFTER_MS_MAX))).await;
            // SIGKILL while the clients read; they see broken answers and go on to check what they got.
            process.kill();
            for client in join_all(clients).await {
                client.unwrap();
            }
        }
        origin.clear_faults();
        for _ in 0..rng.below(3) {
            Process::start_in_vain(dir.path(), &origin, &budget, &mut rng).await;
        }
        let process = Process::start(dir.path(), &origin, &budget, &http).await;
        round.verify(&process, &http).await;
        // Clients that hang up must not leave a file open, either.
        let before = process.open_files().len();
        for (digest, _) in &round.blobs {
            for _ in 0..20 {
                let mut body = http.get(process.blob(digest)).send().await.unwrap().bytes_stream();
                let _first = body.next().await;
            }
        }
        let mut after = process.open_files().len();
        for _ in 0..100 {
            if after <= before + 8 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = process.open_files().len();
        }
        assert!(after <= before + 8, "{after} open files, {before} before");
        let left = leftovers(dir.path()).await;
        assert!(left.is_empty(), "round {n} left files:\n{left}");
        if is_tight {
            assert_within_budget(dir.path()).await;
        }
    }
}
