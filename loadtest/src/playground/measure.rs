//! One measured start: pull, create, ready; and what passed over the wires meanwhile.
//!
//! In: a node on fresh state, the relays. Out: [`Start`].
//! Invariant: times are of the whole call as a kubelet would see it; bytes are counted by relays, not by the programs
//! under test, except the chunk bytes, which only the server can tell apart.
//! Not here: which starts are compared ([`super::compare`]).

use std::{
    fs,
    time::{Duration, Instant},
};

use headstart_layer_format::api::LayerState;

use super::{
    Result,
    container::Container,
    lab::{Lab, RelayedProxy},
    node::Node,
    recipe,
};

/// One start of the demo container.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Start {
    pub pull_ms: f64,
    /// From create to the ready text.
    pub ready_ms: f64,
    pub total_ms: f64,
    /// To the node, from the proxy: registry and chunk traffic together.
    pub proxy_bytes: u64,
    /// From the upstream, to the proxy or to the node.
    pub upstream_bytes: u64,
    /// Layer bytes the node received: whole blobs, or chunk frames.
    pub layer_bytes: u64,
    /// Layer bytes as they lie on the node, uncompressed; only for lazy starts.
    pub unpacked_bytes: Option<u64>,
}

/// Makes what is on disk be read from there again, where the kernel lets us. Without a `sync(2)` before it: that waits for
/// everybody's writes, cannot be interrupted, and what the starts read was synced when it was made.
pub fn drop_page_cache() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

#[derive(Clone, Copy, Default)]
struct Wires {
    proxy: u64,
    upstream: u64,
    direct: u64,
    chunks: u64,
    blobs: u64,
}

async fn wires(lab: &Lab, proxy: Option<&RelayedProxy>) -> Result<Wires> {
    let direct = lab.direct_link.traffic().down_bytes;
    let upstream = lab.proxy_link.traffic().down_bytes;
    let Some(p) = proxy else {
        return Ok(Wires {
            direct,
            upstream,
            ..Wires::default()
        });
    };
    let counters = p.proxy.counters().await?;
    let served = |route: &str| counters.sum("headstart_served_bytes_total", &[&format!("route=\"{route}\"")]) as u64;
    Ok(Wires {
        proxy: p.mirror_link.traffic().down_bytes + p.shim_link.traffic().down_bytes,
        upstream,
        direct,
        chunks: served("data") + served("chunks"),
        blobs: served("blobs"),
    })
}

/// Pulls, starts and waits for the container's end. `proxy` is the one the node uses, if any.
pub async fn start(lab: &Lab, node: &Node, proxy: Option<&RelayedProxy>) -> Result<Start> {
    let before = wires(lab, proxy).await?;
    drop_page_cache();
    let begun = Instant::now();
    node.pull().await?;
    let pull = begun.elapsed();
    let mut container = Container::start(node, "demo", recipe::COMMAND)?;
    let ready = container.until_printed(recipe::READY).await?;
    let total = pull + ready;
    container.output().await?;
    let at_node = wires(lab, proxy).await?;
    if let Some(p) = proxy {
        settle(lab, p).await?;
    }
    let after = wires(lab, proxy).await?;

    let direct = after.direct - before.direct;
    let layers = match proxy {
        // The config blob is a few kilobytes of it.
        Some(_) => (at_node.chunks - before.chunks) + (at_node.blobs - before.blobs) + direct,
        None => direct,
    };
    Ok(Start {
        pull_ms: ms(pull),
        ready_ms: ms(ready),
        total_ms: ms(total),
        proxy_bytes: at_node.proxy - before.proxy,
        upstream_bytes: (after.upstream - before.upstream) + direct,
        layer_bytes: layers,
        unpacked_bytes: node.shim.as_ref().map(|s| s.disk_bytes()),
    })
}

/// Waits until the server has finished what the start made it begin, so that the upstream's bytes are all counted.
pub async fn settle(lab: &Lab, proxy: &RelayedProxy) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = proxy.proxy.image(&lab.image.manifest, 10_000).await?;
        let busy = status.is_some_and(|s| {
            s.layers
                .iter()
                .any(|l| matches!(l.state, LayerState::Queued | LayerState::Converting))
        });
        if !busy || Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}
