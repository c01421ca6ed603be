//! What a node tells a collector: the shim as a process, between a scripted server and a scripted collector. Needs root and
//! /dev/fuse.
//!
//! In: calls as containerd makes them, reads as containers do. Out: spans, and what servers were told of them.
//! Not here: the server's own spans (`server/tests/observe`), which are children of these with `trust_traceparent` there.

#[path = "../../../server/tests/support/collector.rs"]
mod collector;
#[allow(dead_code, reason = "shared with the tests of the lazy half, which use more of it")]
#[path = "../lazy/support/layer.rs"]
mod layer;
mod node;
#[allow(dead_code, reason = "the same")]
#[path = "../lazy/support/server.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use collector::{Collector, attribute};
use headstart_loadtest::corpus::noise;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};

pub use layer::TestLayer;
use layer::{Item, LayerBuilder};
use node::{Node, TOKEN, manifest, until};
use server::Script;

const LEN: usize = 256 << 10;
const CHUNK: usize = 64 << 10;
/// What is read is fetched because it is read, and read through the shim.
const IDLE: &str = "background_fill = false\nwhole_layers = 'asked'";
/// A caller's trace and span.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn layer(seed: u64) -> Arc<TestLayer> {
    LayerBuilder::new().add("f", Item::file(noise(LEN, seed))).build(CHUNK)
}

fn to(collector: &Collector, more: &str) -> String {
    format!(
        "otlp_endpoint = 'http://{}'\ntrace_ratio = 1.0\n{more}",
        collector.address
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The only span that is called so and has this.
fn only<'a>(spans: &'a [Span], name: &str, key: &str, value: &str) -> &'a Span {
    let found: Vec<_> = spans
        .iter()
        .filter(|s| s.name == name && attribute(s, key) == Some(value))
        .collect();
    assert_eq!(found.len(), 1, "{name} with {key} {value} in {spans:#?}");
    found[0]
}

fn number(span: &Span, key: &str) -> Option<i64> {
    let found = span.attributes.iter().find(|a| a.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::IntValue(n) => Some(*n),
        _ => None,
    }
}

fn has_failed(span: &Span) -> bool {
    let code = span.status.as_ref().map(|s| s.code);
    code == Some(StatusCode::Error as i32)
}

/// The `traceparent` that says a span of ours.
fn told_of(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

#[test]
fn a_lazy_pull_and_its_misses_are_traces_that_servers_are_told() {
    let mut node = Node::start(|c| to(c, ""), IDLE, &[]);
    let (cold, profiled) = (layer(1), layer(2));
    node.server.serve_image(manifest("cold"), std::slice::from_ref(&cold));
    node.server
        .serve_image(manifest("profiled"), std::slice::from_ref(&profiled));
    node.server.profile(manifest("profiled"), Script::honest(0, &profiled));

    node.client.traceparent = Some(format!("00-{TRACE}-{SPAN}-01"));
    let dir = node.pull("cold", &cold);
    node.client.traceparent = None;
    assert!(fs::read(dir.join("f")).unwrap() == noise(LEN, 1));
    let dir = node.pull("profiled", &profiled);
    until("the prefetch", || node.log().contains("\"progress\":\"Done\""));
    assert!(fs::read(dir.join("f")).unwrap() == noise(LEN, 2));
    // An image that no server knows.
    let chain = headstart_layer_format::ChainId::bottom(headstart_layer_format::DiffId::of(b"x")).to_string();
    assert!(node.prepare("strange", &chain).is_ok());
    node.runtime.block_on(node.client.remove("extract-strange")).unwrap();
    let gone = node.runtime.block_on(node.client.remove("nothing")).unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    let bad = node
        .runtime
        .block_on(node.client.mounts(&cold_chain(&cold)))
        .unwrap_err();
    assert_eq!(bad.code(), tonic::Code::FailedPrecondition);
    assert!(node.runtime.block_on(node.client.stat(&cold_chain(&cold))).is_ok());
    assert!(node.stop().0.success(), "{}", node.log());

    let spans = node.collector.spans();
    let traced = node.server.traced();
    // The one request for this, and the span that it was told.
    let told = |what: &str, span: &Span| {
        let of: Vec<_> = traced.iter().filter(|(line, _)| line.contains(what)).collect();
        assert!(!of.is_empty(), "{what} in {traced:?}");
        assert!(
            of.iter().any(|(_, told)| *told == told_of(span)),
            "{what}: {of:?}, not {span:?}"
        );
    };

    // The call, with its caller's trace and its decision.
    let prepare = only(&spans, "prepare", "key", "extract-cold");
    assert_eq!(
        (hex(&prepare.trace_id).as_str(), hex(&prepare.parent_span_id).as_str()),
        (TRACE, SPAN)
    );
    assert_eq!(attribute(prepare, "decision"), Some("lazy"));
    assert_eq!(attribute(prepare, "chain"), Some(cold_chain(&cold).as_str()));
    let asked_manifest = manifest("cold").to_string();
    assert_eq!(attribute(prepare, "manifest"), Some(asked_manifest.as_str()));
    assert!(!has_failed(prepare), "that it exists already is the answer");
    // The question, the TOC, the mount.
    let asked = only(&spans, "ask image", "manifest", &asked_manifest);
    assert_eq!(
        (&asked.trace_id, &asked.parent_span_id),
        (&prepare.trace_id, &prepare.span_id)
    );
    assert_eq!(attribute(asked, "outcome"), Some("ready"));
    assert_eq!(attribute(asked, "server"), Some(node.server.url().as_str()));
    told(&asked_manifest, asked);
    let digest = cold.digest.to_string();
    // Presented ahead of its call, for the call that decided.
    let ahead = only(&spans, "layer", "layer", &digest);
    assert_eq!(
        (&ahead.trace_id, &ahead.parent_span_id),
        (&prepare.trace_id, &prepare.span_id)
    );
    let toc = only(&spans, "toc", "layer", &digest);
    assert_eq!(toc.trace_id, prepare.trace_id);
    assert_eq!(number(toc, "bytes"), Some(cold.encoded.len() as i64));
    told(&format!("{digest}/toc"), toc);
    let mount = only(&spans, "mount layer", "layer", &digest);
    assert_eq!(
        (&mount.trace_id, &mount.parent_span_id),
        (&prepare.trace_id, &toc.parent_span_id)
    );

    // A miss has no cause that we know.
    let misses: Vec<_> = spans.iter().filter(|s| s.name == "miss").collect();
    assert!(!misses.is_empty());
    for miss in &misses {
        assert_eq!(
            attribute(miss, "layer"),
            Some(digest.as_str()),
            "the other image was prefetched"
        );
        assert_eq!(attribute(miss, "source"), Some("server"));
        assert!(miss.parent_span_id.is_empty() && !has_failed(miss));
        told(&format!("{digest}/data"), miss);
    }
    let chunks: i64 = misses.iter().map(|m| number(m, "chunks").unwrap()).sum();
    let frames: i64 = misses.iter().map(|m| number(m, "frame_bytes").unwrap()).sum();
    let all: Vec<i64> = cold.toc.chunks().iter().map(|c| c.frame.len as i64).collect();
    assert_eq!((chunks, frames), (all.len() as i64, all.iter().sum()));

    // What a profile says comes for the call that decided.
    let prepare = only(&spans, "prepare", "key", "extract-profiled");
    let profiled_manifest = manifest("profiled").to_string();
    let prefetch = only(&spans, "prefetch", "manifest", &profiled_manifest);
    assert_eq!(
        (&prefetch.trace_id, &prefetch.parent_span_id),
        (&prepare.trace_id, &prepare.span_id)
    );
    assert_eq!(
        number(prefetch, "received_chunks"),
        Some(i64::from(profiled.toc.chunks().len()))
    );
    assert!(number(prefetch, "received_bytes") > Some(0));
    assert_eq!(attribute(prefetch, "outcome"), Some("Done"));
    told("POST /chunks", prefetch);

    // Declined, and why.
    let prepare = only(&spans, "prepare", "key", "extract-strange");
    assert_eq!(attribute(prepare, "decision"), Some("ordinary"));
    assert_eq!(attribute(prepare, "reason"), Some("unknown_image"));
    assert!(
        !has_failed(only(&spans, "remove", "key", "nothing")),
        "an answer that containerd works with"
    );
    assert!(has_failed(only(&spans, "mounts", "key", &cold_chain(&cold))));

    let names: BTreeSet<_> = spans.iter().map(|s| s.name.as_str()).collect();
    let expected = [
        "ask image",
        "layer",
        "miss",
        "mount layer",
        "mounts",
        "prefetch",
        "prepare",
        "remove",
        "toc",
    ];
    assert_eq!(
        names,
        BTreeSet::from(expected),
        "of our own, and none of calls that look"
    );
    assert!(node.collector.saw("host.name") && !node.collector.saw(TOKEN));
    assert!(!node.log().contains("extract-cold"), "spans are not in the log");
}

fn cold_chain(layer: &TestLayer) -> String {
    headstart_layer_format::ChainId::bottom(*layer.toc.diff_id()).to_string()
}

#[test]
fn what_nobody_waits_for_is_one_span_a_layer_and_nobody_is_told_who_shall_not_be() {
    let telemetry = |c: &Collector| to(c, "propagate_to_servers = false\ntrust_traceparent = false");
    let lazy = "fill_after_ms = 0\nflush_interval_ms = 20\npresentation = 'erofs'\nwhole_layers = 'direct'";
    let mut node = Node::start(telemetry, lazy, &[]);
    let layer = layer(1);
    node.server.serve_image(manifest("i"), std::slice::from_ref(&layer));
    node.client.traceparent = Some(format!("00-{TRACE}-{SPAN}-01"));
    node.pull("i", &layer);
    until("the fill", || node.log().contains("layer-read-without-us"));
    assert!(node.stop().0.success(), "{}", node.log());
    let spans = node.collector.spans();
    let digest = layer.digest.to_string();
    let fill = only(&spans, "fill", "layer", &digest);
    assert_eq!(attribute(fill, "outcome"), Some("Whole"));
    assert_eq!(number(fill, "chunks"), Some(i64::from(layer.toc.chunks().len())));
    only(&spans, "switch layer", "layer", &digest);
    assert!(spans.iter().all(|s| s.name != "miss"));
    let prepare = only(&spans, "prepare", "key", "extract-i");
    assert_ne!(hex(&prepare.trace_id), TRACE);
    assert_eq!(hex(&prepare.links[0].trace_id), TRACE);
    assert_eq!(node.server.traced(), []);
}

/// The export would take an hour; only the deadline of the end lets the shim go, or that there is no room to wait in.
#[test]
fn a_collector_that_hangs_delays_nothing_and_stops_nothing() {
    // The second time there are more spans than the queue has room for.
    for calls in [1, 3000] {
        let telemetry = |c: &Collector| {
            c.hang();
            to(c, "export_timeout_ms = 3600000\nflush_timeout_ms = 300")
        };
        let mut node = Node::start(telemetry, IDLE, &[]);
        let layer = layer(1);
        node.server.serve_image(manifest("i"), std::slice::from_ref(&layer));
        let dir = node.pull("i", &layer);
        until("an export", || node.collector.requests() > 0);
        for i in 0..calls {
            let mounts = node.runtime.block_on(node.client.mounts("i"));
            assert!(mounts.is_ok(), "{i}: {mounts:?}");
        }
        assert!(fs::read(dir.join("f")).unwrap() == noise(LEN, 1));
        // It ends before anybody's patience does.
        assert!(node.stop().0.success(), "{}", node.log());
        assert_eq!(node.collector.waiting_max(), 1, "one export at a time");
    }
}

/// Said once, and not with each export, and not by the libraries.
#[test]
fn a_collector_that_is_away_is_said_once() {
    let mut node = Node::start(
        |_| "otlp_endpoint = 'http://127.0.0.1:1'\ntrace_ratio = 1.0".into(),
        IDLE,
        &[],
    );
    let layer = layer(1);
    node.server.serve_image(manifest("i"), std::slice::from_ref(&layer));
    let dir = node.pull("i", &layer);
    let said = |node: &Node| {
        node.log()
            .lines()
            .filter(|l| l.contains("collector takes nothing"))
            .count()
    };
    until("it is noticed", || said(&node) > 0);
    assert!(fs::read(dir.join("f")).unwrap() == noise(LEN, 1));
    // The time of some exports.
    for _ in 0..5 {
        assert!(node.runtime.block_on(node.client.mounts("i")).is_ok());
        std::thread::sleep(Duration::from_millis(1000));
    }
    assert!(node.stop().0.success(), "{}", node.log());
    assert_eq!(said(&node), 1, "{}", node.log());
    assert!(!node.log().contains("opentelemetry"), "{}", node.log());
}

/// Also where the environment has a collector, for other programs.
#[test]
fn without_an_endpoint_nothing_is_sent_and_nobody_told() {
    let elsewhere = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let collector = elsewhere.block_on(Collector::start());
    let endpoint = format!("http://{}", collector.address);
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
    let mut node = Node::start(|_| "trace_ratio = 1.0".into(), IDLE, &environment);
    let layer = layer(1);
    node.server.serve_image(manifest("i"), std::slice::from_ref(&layer));
    node.client.traceparent = Some(format!("00-{TRACE}-{SPAN}-01"));
    let dir = node.pull("i", &layer);
    assert!(fs::read(dir.join("f")).unwrap() == noise(LEN, 1));
    // Longer than spans wait for each other.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(node.stop().0.success(), "{}", node.log());
    assert_eq!((collector.requests(), node.collector.requests()), (0, 0));
    assert_eq!(node.server.traced(), []);
}
