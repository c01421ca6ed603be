//! kill -9 in the middle of one blob: what came is not asked for again.
//!
//! In: a blob that the origin holds back half-way, a client that has read as far as that. Out: the blob, from the next
//! process, and how many bytes the origin sent in all.
//! Not here: kills at random moments ([`super::pulls`]).

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use headstart_loadtest::{
    corpus::noise,
    origin::{Auth, Origin, Target},
};

use crate::{
    REPOSITORY,
    process::{Directory, Process},
    soon,
};

const UNIT: u64 = headstart_server::store::units::UNIT;

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_a_blob_before_a_kill_is_not_fetched_again() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), Directory::new());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let content = Bytes::from(noise(8 << 20, 1));
    let digest = origin.add_blob(REPOSITORY, content.clone());
    // In the middle of a unit.
    let half = 4 * UNIT + UNIT / 2;
    let gate = origin.hold(Target::Digest(digest), half);
    let process = Process::start(dir.path(), &origin, "", &http).await;
    let mut body = http.get(process.blob(&digest)).send().await.unwrap().bytes_stream();
    let mut got = Vec::new();
    while (got.len() as u64) < half {
        got.extend_from_slice(&soon(body.next()).await.unwrap().unwrap());
    }
    assert!(got == content[..half as usize]);
    // Readers have bytes a moment before they are noted.
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.kill();
    drop(process);
    while let Some(Ok(_)) = soon(body.next()).await {}
    origin.clear_faults();
    gate.open();

    let process = Process::start(dir.path(), &origin, "", &http).await;
    let answer = soon(http.get(process.blob(&digest)).send()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(soon(answer.bytes()).await.unwrap() == content);
    let sent = origin.bytes_sent(&digest);
    assert!(sent <= content.len() as u64 + UNIT, "{sent} bytes came");
}
