//! The ways to a collector: of spans, and of metrics.
//!
//! In: its address, and who we are. Out: [`Spans`], and a reader for a meter provider.
//! Invariant: each export has a time-out; that of the exporter is up before that of whoever calls it, and it says so.
//! Not here: credentials, which `OTEL_EXPORTER_OTLP_HEADERS` has.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    metrics::{exporter::PushMetricExporter, periodic_reader_with_async_runtime::PeriodicReader},
    runtime::Tokio,
    trace::{BatchConfigBuilder, Sampler, SdkTracerProvider, span_processor_with_async_runtime::BatchSpanProcessor},
};

use super::{reported::Reported, spans::Spans};

/// Spans of one export, at most. A span has about a kilobyte.
const BATCH_LEN: usize = 512;

/// Spans wait this long for others to be sent with.
const BATCH_DELAY: Duration = Duration::from_secs(2);

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
#[error("use [telemetry]: {0}")]
pub struct TelemetryError(pub String);

/// Where a collector is, and who sends.
#[derive(Clone, Debug)]
pub struct Collector<'a> {
    /// Speaks OTLP over HTTP with protobuf; without the `/v1/...`.
    pub endpoint: &'a str,
    pub resource: Resource,
    pub export_timeout: Duration,
}

impl Collector<'_> {
    /// `ratio`: share of the traces that is sent. `queue_len`: spans that wait for export, at most. To be called on a Tokio
    /// runtime, which then sends. Asks nobody yet.
    pub fn spans(&self, ratio: f64, queue_len: usize) -> Result<Spans, TelemetryError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(self.signal("traces"))
            .with_timeout(self.export_timeout)
            .build()
            .map_err(|e| TelemetryError(e.to_string()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(queue_len)
            .with_max_export_batch_size(BATCH_LEN)
            .with_scheduled_delay(BATCH_DELAY)
            .with_max_export_timeout(self.export_timeout.saturating_mul(2))
            .build();
        let is_failing = Arc::new(AtomicBool::new(false));
        let reported = Reported::new(exporter, "spans", is_failing.clone());
        let processor = BatchSpanProcessor::builder(reported, Tokio)
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(self.resource.clone())
            .build();
        Ok(Spans::new(provider, is_failing))
    }

    /// Sends metrics every `interval`. To be called on a Tokio runtime.
    pub fn metrics(
        &self,
        interval: Duration,
    ) -> Result<PeriodicReader<impl PushMetricExporter + use<>>, TelemetryError> {
        let exporter = MetricExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(self.signal("metrics"))
            .with_timeout(self.export_timeout)
            .build()
            .map_err(|e| TelemetryError(e.to_string()))?;
        Ok(
            PeriodicReader::builder(Reported::new(exporter, "metrics", Arc::default()), Tokio)
                .with_interval(interval)
                .with_timeout(self.export_timeout)
                .build(),
        )
    }

    fn signal(&self, name: &str) -> String {
        format!("{}/v1/{name}", self.endpoint.trim_end_matches('/'))
    }
}

/// Who sends, with attributes that the operator chose.
pub fn resource<'a>(
    service_name: &str,
    version: &'static str,
    attributes: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Resource {
    let attributes = attributes.into_iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
    Resource::builder()
        .with_service_name(service_name.to_owned())
        .with_attribute(KeyValue::new("service.version", version))
        .with_attributes(attributes)
        .build()
}

/// What an operator's endpoint must be.
pub fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
    let Some(rest) = endpoint
        .strip_prefix("http://")
        .or_else(|| endpoint.strip_prefix("https://"))
    else {
        return Err("must begin with http:// or https://");
    };
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') || endpoint.contains(['?', '#']) {
        return Err("must not carry a user, a password or a query; use OTEL_EXPORTER_OTLP_HEADERS");
    }
    let is_port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse::<u16>().is_ok(),
        _ => true,
    };
    match is_port && endpoint.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some()) {
        true => Ok(()),
        false => Err("must be a URL with a host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        for right in [
            "http://collector:4318",
            "https://[::1]:4318/otlp/",
            "http://10.0.0.1",
            "http://[::1]",
        ] {
            assert_eq!(check_endpoint(right), Ok(()), "{right}");
        }
        for wrong in [
            "collector:4318",
            "grpc://collector:4317",
            "http://",
            "http:///v1",
            "http://collector:4318x",
            "http://collector:70000",
            "http://user:secret@collector",
            "http://collector?token=secret",
            "http://collector#part",
            "http://a b",
        ] {
            assert!(check_endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
