//! What a server tells about itself: traces, metrics, logs.
//!
//! In: the real binary between a client, a scripted origin and a scripted collector. Out: what each of them was told.
//! Not here: what it must not tell (`attacks/secrets_in_logs.rs`, and a look at everything the collector got, in
//! [`traces`]).

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/collector.rs"]
mod collector;

mod logs;
mod metrics;
mod traces;

use collector::Collector;
use headstart_loadtest::origin::Origin;

/// A configuration for [`support::binary::Binary`]: the origin as upstream, the collector with these further keys.
fn config(origin: &Origin, collector: &Collector, telemetry: &str) -> String {
    format!(
        "{}\n[telemetry]\notlp_endpoint = \"http://{}\"\n{telemetry}",
        upstream(origin),
        collector.address
    )
}

fn upstream(origin: &Origin) -> String {
    format!(
        "[[upstreams]]\nname = \"{}\"\nurl = \"{}\"",
        support::UPSTREAM,
        origin.url()
    )
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}
