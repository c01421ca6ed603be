//! kill -9, again and again, over one data directory: in cold pulls, and in conversions.
//!
//! In: the real binary, a scripted origin, and `HEADSTART_KILL_ROUNDS` (CI: a few; a campaign: 200 or more). Out: after each
//! restart everything is right, nothing is stuck, and nothing is left over in the data directory.
//! Here is what both need: how often, and what "stuck" means.
//! Not here: power cuts (`src/store/crash`), damage at rest (`store.rs`, `fsck/`).

#[path = "../support/layers.rs"]
mod layers;

mod conversions;
mod files;
mod lazily;
mod partial;
mod process;
mod pulls;

use std::time::Duration;

const UPSTREAM: &str = "origin.test";
const REPOSITORY: &str = "team/app";

/// Rounds over one data directory; then a fresh one, so that the disk does not fill.
const ROUNDS_A_DIRECTORY: u64 = 25;
/// Nothing that works takes this long, on any machine. (A conversion waits half a minute for room, perhaps more than once.)
const STUCK: Duration = Duration::from_secs(300);

fn rounds(few: u64) -> u64 {
    let asked = std::env::var("HEADSTART_KILL_ROUNDS");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(STUCK, work).await.expect("nothing is stuck")
}
