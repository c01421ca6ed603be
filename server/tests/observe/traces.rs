//! A client's request, the fetch and the conversion that it begins: one trace.

use std::collections::BTreeSet;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Fault, Listener, Origin, Target, basic_header},
};
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};

use super::{
    client,
    collector::{Collector, attribute},
    config,
    support::{REPOSITORY, UPSTREAM, binary::Binary, noise},
};

const PASSWORD: &str = "hunter2-upstream-password";
const CLIENT_TOKEN: &str = "hunter4-client-bearer-token";
const QUERY: &str = "hunter6-client-query";

/// Of a client: trace and span.
fn traceparent(n: u8) -> (String, Vec<u8>, Vec<u8>) {
    let (trace, span) = (vec![n; 16], vec![n; 8]);
    let text = format!("00-{}-{}-01", hex(&trace), hex(&span));
    (text, trace, span)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Traces(Vec<Span>);

impl Traces {
    fn of(&self, trace: &[u8]) -> Vec<&Span> {
        self.0.iter().filter(|s| s.trace_id == trace).collect()
    }

    fn parent(&self, span: &Span) -> Option<&Span> {
        self.0.iter().find(|s| s.span_id == span.parent_span_id)
    }

    /// Names of the span and of what it is in, innermost first.
    fn path(&self, span: &Span) -> Vec<&str> {
        let mut names = Vec::new();
        let mut at = self.0.iter().find(|s| s.span_id == span.span_id);
        while let Some(span) = at {
            names.push(span.name.as_str());
            at = self.parent(span);
        }
        names
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_one_trace_from_the_client_to_upstream_and_conversion() {
    let collector = Collector::start().await;
    let image = SyntheticImage::tiny(31);
    let origin = Origin::start(Auth::bearer_for("robot", PASSWORD));
    image.push(&origin, REPOSITORY, "latest");
    let lone = origin.add_blob(REPOSITORY, noise(300_000, 1));
    origin.redirect_blobs(true);
    let config = format!(
        "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[upstreams.auth]\nusername = \"robot\"\npassword_env = \"UP\"\n\
         [telemetry]\notlp_endpoint = \"http://{}\"\ntrace_ratio = 0.0\ntrust_traceparent = true\n\
         propagate_to_upstreams = true",
        origin.url(),
        collector.address
    );
    let mut server = Binary::start(&config, "filter = \"debug\"", &[("UP", PASSWORD)]);
    let http = client();
    let ask = async |what: String, n: u8| {
        let url = server.url(&format!("/v2/{REPOSITORY}/{what}?ns={UPSTREAM}&token={QUERY}"));
        let request = http.get(url).header("traceparent", traceparent(n).0);
        let answer = request.bearer_auth(CLIENT_TOKEN).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{what}");
        answer.bytes().await.unwrap()
    };
    // The second client of the blob comes while the first one's fetch stands still.
    let gate = origin.hold(Target::Digest(lone), 100);
    let url = server.url(&format!("/v2/{REPOSITORY}/blobs/{lone}?ns={UPSTREAM}"));
    let first = http
        .get(&url)
        .header("traceparent", traceparent(1).0)
        .send()
        .await
        .unwrap();
    let second = http
        .get(&url)
        .header("traceparent", traceparent(2).0)
        .send()
        .await
        .unwrap();
    gate.open();
    assert_eq!(BlobDigest::of(&first.bytes().await.unwrap()), lone);
    assert_eq!(BlobDigest::of(&second.bytes().await.unwrap()), lone);
    ask(format!("manifests/{}", image.manifest_digest), 3).await;
    // Not by asking for the image's state, which would begin a conversion that nobody has begun yet.
    for _ in 0..600 {
        if server.lines("headstart_server::read::conversion").len() >= image.layers.len() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.terminate();
    assert!(server.wait().success());

    let all = Traces(collector.spans());
    let (_, trace, span) = traceparent(1);
    let ours = all.of(&trace);
    let request = ours.iter().find(|s| s.name == "request").expect("the request's span");
    assert_eq!(request.parent_span_id, span);
    assert_eq!(attribute(request, "route"), Some("blobs"));
    let fetch = ours.iter().find(|s| s.name == "fetch").expect("the fetch's span");
    assert_eq!(fetch.parent_span_id, request.span_id);
    assert_eq!(attribute(fetch, "digest"), Some(lone.to_string().as_str()));
    assert_eq!(attribute(fetch, "request_id"), attribute(request, "request_id"));
    let upstream: Vec<_> = ours.iter().filter(|s| s.name == "upstream").collect();
    assert!(!upstream.is_empty());
    for span in &upstream {
        assert!(all.path(span).ends_with(&["fetch", "request"]), "{:?}", all.path(span));
    }

    // Who joins a fetch has its own trace, linked to it.
    let (_, trace, _) = traceparent(2);
    let joined = all.of(&trace);
    let request = joined
        .iter()
        .find(|s| s.name == "request")
        .expect("the second request's span");
    assert!(!joined.iter().any(|s| s.name == "fetch"), "one fetch only");
    assert!(request.links.iter().any(|l| l.span_id == fetch.span_id), "{request:?}");

    // Conversions are in the trace of the manifest's request, and so are the fetches that it begins before it is answered.
    let (_, trace, _) = traceparent(3);
    let pulled = all.of(&trace);
    let ingests: Vec<_> = pulled.iter().filter(|s| s.name == "ingest").collect();
    assert_eq!(ingests.len(), image.layers.len());
    let id = attribute(pulled.iter().find(|s| s.name == "request").unwrap(), "request_id");
    for span in ingests {
        assert_eq!(all.path(span), ["ingest", "learn image", "request"]);
        assert_eq!(attribute(span, "outcome"), Some("ready"));
        assert_eq!(attribute(span, "request_id"), id);
    }
    let fetched = pulled.iter().filter(|s| s.name == "fetch");
    assert!(fetched.clone().count() >= image.layers.len());
    for span in fetched {
        assert!(all.path(span).ends_with(&["request"]), "{:?}", all.path(span));
    }

    // Upstreams are told the trace, each request with the span that it is.
    for call in origin
        .calls()
        .iter()
        .filter(|c| c.digest == Some(lone) || c.is_manifest())
    {
        let told = call.traceparent.as_deref().expect("a traceparent");
        let parts: Vec<_> = told.split('-').collect();
        let span = all
            .0
            .iter()
            .find(|s| hex(&s.span_id) == parts[2])
            .expect("one of our spans");
        assert_eq!(
            (span.name.as_str(), hex(&span.trace_id).as_str()),
            ("upstream", parts[1])
        );
    }

    // And the collector is told no secret.
    let mut secrets: Vec<String> = [PASSWORD, CLIENT_TOKEN, QUERY].map(str::to_owned).into();
    secrets.push(basic_header("robot", PASSWORD)["Basic ".len()..].to_owned());
    for call in origin.calls() {
        let shown = call.authorization.iter().filter_map(|a| a.split_once(' '));
        secrets.extend(shown.map(|(_, secret)| secret.to_owned()));
        if call.listener == Listener::Cdn {
            secrets.extend(call.query);
        }
    }
    assert!(secrets.len() > 6, "tokens and signatures were used");
    assert!(collector.saw(UPSTREAM), "everything is looked at");
    for secret in secrets {
        assert!(!collector.saw(&secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_s_trace_is_a_link_and_upstreams_are_told_nothing() {
    let collector = Collector::start().await;
    let origin = Origin::start(Auth::Anonymous);
    let blob = origin.add_blob(REPOSITORY, noise(1000, 1));
    let mut server = Binary::start(&config(&origin, &collector, "trace_ratio = 1.0"), "", &[]);
    let url = server.url(&format!("/v2/{REPOSITORY}/blobs/{blob}?ns={UPSTREAM}"));
    let (text, trace, span) = traceparent(7);
    for sent in [
        text.as_str(),
        "00-00000000000000000000000000000000-0000000000000000-01",
        "nonsense",
    ] {
        let answer = client().get(&url).header("traceparent", sent).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    let missing = origin.add_blob(REPOSITORY, noise(1000, 2));
    let broken = Fault::Status {
        code: 502,
        retry_after_secs: None,
    };
    origin.always(Target::Digest(missing), broken);
    let url = server.url(&format!("/v2/{REPOSITORY}/blobs/{missing}?ns={UPSTREAM}"));
    assert_eq!(client().get(&url).send().await.unwrap().status(), 502);
    server.terminate();
    assert!(server.wait().success());
    let spans = collector.spans();
    assert!(spans.iter().all(|s| s.trace_id != trace));
    let requests: Vec<_> = spans.iter().filter(|s| s.name == "request").collect();
    assert_eq!(requests.len(), 4);
    // What went wrong is marked as such, from the client's request to the upstream's.
    let failed = |s: &&Span| {
        s.status
            .as_ref()
            .is_some_and(|status| status.code == StatusCode::Error as i32)
    };
    let marked: BTreeSet<_> = spans.iter().filter(failed).map(|s| s.name.as_str()).collect();
    assert_eq!(marked, BTreeSet::from(["request", "fetch", "upstream"]));
    assert_eq!(requests.iter().copied().filter(failed).count(), 1);
    // A later one may also have met the fetch of the first on its way out, which is a trace of ours.
    let ours = |id: &[u8]| spans.iter().any(|s| s.trace_id == id);
    let links: Vec<_> = requests
        .iter()
        .flat_map(|s| &s.links)
        .filter(|l| !ours(&l.trace_id))
        .collect();
    assert_eq!(links.len(), 1, "one of the three was a trace: {links:?}");
    assert_eq!((&links[0].trace_id, &links[0].span_id), (&trace, &span));
    assert!(origin.calls().iter().all(|c| c.traceparent.is_none()));
}

/// The export would take an hour; only the deadline of the end lets the server go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_costs_nothing_and_stops_nothing() {
    let collector = Collector::start().await;
    collector.hang();
    let origin = Origin::start(Auth::Anonymous);
    let blob = origin.add_blob(REPOSITORY, noise(1000, 1));
    let telemetry = "trace_ratio = 1.0\nmetrics_interval_ms = 100\nexport_timeout_ms = 3600000\nflush_timeout_ms = 300";
    let mut server = Binary::start(&config(&origin, &collector, telemetry), "access = \"off\"", &[]);
    let (http, url) = (
        client(),
        server.url(&format!("/v2/{REPOSITORY}/blobs/{blob}?ns={UPSTREAM}")),
    );
    // More spans than the queue has room for.
    for _ in 0..2500 {
        let answers = (0..2).map(|_| http.get(&url).send());
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.unwrap().bytes().await.unwrap().len(), 1000);
        }
    }
    assert!(collector.requests() > 0, "nothing was ever sent");
    server.terminate();
    assert!(server.wait().success());
    assert!(
        collector.waiting_max() <= 2,
        "one of traces, one of metrics: {}",
        collector.waiting_max()
    );
}

/// One line when it begins and none for each export.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_is_said_once() {
    let collector = Collector::start().await;
    let origin = Origin::start(Auth::Anonymous);
    let blob = origin.add_blob(REPOSITORY, noise(1000, 1));
    origin.always(
        Target::Digest(blob),
        Fault::Status {
            code: 500,
            retry_after_secs: None,
        },
    );
    let config = format!(
        "{}\n[telemetry]\notlp_endpoint = \"http://127.0.0.1:1\"\nmetrics_interval_ms = 100",
        super::upstream(&origin)
    );
    let mut server = Binary::start(&config, "", &[]);
    let said = |server: &Binary| server.lines("headstart_telemetry::reported").len();
    for _ in 0..600 {
        if said(&server) > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(1000)).await;
    server.terminate();
    assert!(server.wait().success());
    assert_eq!(said(&server), 1, "{}", server.log());
    drop(collector);
}
