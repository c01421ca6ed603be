//! A scripted OpenTelemetry collector.
//!
//! In: OTLP over HTTP, protobuf. Out: what arrived, and how many requests wait for an answer.
//! Invariant: everything is kept as it came, so that a test can look for what should not be in it.
//! Not here: judging it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{Router, extract::State, routing::post};
use bytes::Bytes;
use http::StatusCode;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{metric::Data, number_data_point},
    trace::v1::Span,
};
use prost::Message as _;

#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    raw: Mutex<Vec<Bytes>>,
    spans: Mutex<Vec<Span>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    hangs: AtomicBool,
    asked: AtomicUsize,
    waiting: AtomicUsize,
    waiting_max: AtomicUsize,
}

impl Collector {
    pub async fn start() -> Self {
        let seen = Arc::new(Seen::default());
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .with_state(seen.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen }
    }

    /// From now on no request gets an answer.
    pub fn hang(&self) {
        self.seen.hangs.store(true, Ordering::SeqCst);
    }

    pub fn requests(&self) -> usize {
        self.seen.asked.load(Ordering::SeqCst)
    }

    /// The most requests that waited at the same time.
    pub fn waiting_max(&self) -> usize {
        self.seen.waiting_max.load(Ordering::SeqCst)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.seen.spans.lock().unwrap().clone()
    }

    /// Whether these bytes were in anything that arrived.
    pub fn saw(&self, text: &str) -> bool {
        let raw = self.seen.raw.lock().unwrap();
        raw.iter()
            .any(|body| body.windows(text.len()).any(|w| w == text.as_bytes()))
    }

    /// The last value of every counter and of every histogram's count, named as Prometheus writes them; and the units.
    pub fn counters(&self) -> BTreeMap<String, (f64, String)> {
        let mut out = BTreeMap::new();
        for request in self.seen.metrics.lock().unwrap().iter() {
            let scopes = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics);
            for metric in scopes.flat_map(|s| &s.metrics) {
                let mut keep = |suffix: &str, attributes: &[KeyValue], value: f64| {
                    let name = series(&format!("{}{suffix}", metric.name), attributes);
                    out.insert(name, (value, metric.unit.clone()));
                };
                match &metric.data {
                    Some(Data::Sum(sum)) if sum.is_monotonic => {
                        for point in &sum.data_points {
                            let value = match point.value {
                                Some(number_data_point::Value::AsDouble(value)) => value,
                                Some(number_data_point::Value::AsInt(value)) => value as f64,
                                None => continue,
                            };
                            keep("", &point.attributes, value);
                        }
                    }
                    Some(Data::Histogram(histogram)) => {
                        for point in &histogram.data_points {
                            keep("_count", &point.attributes, point.count as f64);
                        }
                    }
                    _ => {}
                }
            }
        }
        out
    }
}

fn series(name: &str, attributes: &[KeyValue]) -> String {
    let mut labels: Vec<String> = attributes
        .iter()
        .map(|a| format!("{}=\"{}\"", a.key, text(a).unwrap_or_default()))
        .collect();
    labels.sort();
    match labels.is_empty() {
        true => name.to_owned(),
        false => format!("{name}{{{}}}", labels.join(",")),
    }
}

/// A text attribute of a span.
pub fn attribute<'s>(span: &'s Span, key: &str) -> Option<&'s str> {
    span.attributes.iter().find(|a| a.key == key).and_then(text)
}

fn text(pair: &KeyValue) -> Option<&str> {
    match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

impl Seen {
    async fn take(&self, body: &Bytes) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.raw.lock().unwrap().push(body.clone());
        if self.hangs.load(Ordering::SeqCst) {
            let waiting = Waiting(&self.waiting);
            self.waiting_max
                .fetch_max(waiting.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn traces(State(seen): State<Arc<Seen>>, body: Bytes) -> StatusCode {
    seen.take(&body).await;
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|r| r.scope_spans);
    seen.spans.lock().unwrap().extend(scopes.flat_map(|s| s.spans));
    StatusCode::OK
}

async fn metrics(State(seen): State<Arc<Seen>>, body: Bytes) -> StatusCode {
    seen.take(&body).await;
    let request = ExportMetricsServiceRequest::decode(body).unwrap();
    seen.metrics.lock().unwrap().push(request);
    StatusCode::OK
}
