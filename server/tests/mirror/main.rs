//! What a mirror owes its clients around an outage: manifests whose blobs they get, lists that survive a restart, and
//! an upstream that is not asked for what it has just said, nor for what is here or nobody wants. And whatever way they ask.
//!
//! In: servers in this process, and the scripted origin behind them. Out: statuses, warnings, and what the origin was
//! asked. Not here: policies of tags (`tag_policy.rs`), and the specification's own checks (`conformance/`).

#[path = "../support/mod.rs"]
mod support;

mod absent;
mod costs;
mod lists;
mod members;
mod parts;
mod wildcards;

fn warning(response: &reqwest::Response) -> Option<&str> {
    response.headers().get("warning").map(|v| v.to_str().unwrap())
}
