//! Numbers: the same by both ways, bounded whatever clients send, there to the last.

use std::collections::BTreeMap;

use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use headstart_server::config::{AccessMethod, Config};

use super::{
    client,
    collector::Collector,
    config,
    support::{self, REPOSITORY, Server, UPSTREAM, binary::Binary, noise},
};

/// Counters and counts of histograms, by series.
fn series(text: &str) -> BTreeMap<String, f64> {
    let pairs = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '));
    pairs
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_collector_gets_at_the_end_what_a_scrape_would() {
    let collector = Collector::start().await;
    let origin = Origin::start(Auth::Anonymous);
    let blob = origin.add_blob(REPOSITORY, noise(100_000, 1));
    // Nothing is sent before the end.
    let telemetry = "trace_ratio = 0.0\nmetrics_interval_ms = 3600000";
    let mut server = Binary::start(&config(&origin, &collector, telemetry), "", &[]);
    let http = client();
    for what in [
        format!("blobs/{blob}"),
        format!("blobs/{blob}"),
        "manifests/none".to_owned(),
        "tags/list".to_owned(),
        "nonsense".to_owned(),
    ] {
        let url = server.url(&format!("/v2/{REPOSITORY}/{what}?ns={UPSTREAM}"));
        let answer = http.get(url).send().await.unwrap();
        answer.bytes().await.unwrap();
    }
    let scrape = async || {
        series(
            &http
                .get(server.url("/metrics"))
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap(),
        )
    };
    let ended = "headstart_request_seconds_count{route=\"other\"}";
    let mut scraped = scrape().await;
    for _ in 0..600 {
        if scraped.contains_key(ended) && scraped.get("headstart_blob_fetches_in_progress") == Some(&0.0) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        scraped = scrape().await;
    }
    assert_eq!(scraped["headstart_blob_fetches_in_progress"], 0.0);
    assert!(collector.counters().is_empty());
    server.terminate();
    assert!(server.wait().success());

    let sent = collector.counters();
    let moved = |name: &str| {
        // What the scrapes and the end itself move.
        name.contains("route=\"probes\"") || name.contains("connections_cut") || name.contains("reclaim")
    };
    let compared: Vec<_> = scraped
        .iter()
        .filter(|(name, _)| name.starts_with("headstart_") && !moved(name))
        .filter(|(name, _)| name.contains("_total") || (name.contains("_seconds_count")))
        .collect();
    assert!(compared.len() >= 10, "{compared:?}");
    for (name, value) in compared {
        let (there, unit) = sent.get(name).unwrap_or_else(|| panic!("{name} was not sent"));
        assert!((there - value).abs() < 1e-6, "{name}: {value} scraped, {there} sent");
        assert!(!unit.is_empty(), "{name} has no unit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_clients_send_the_number_of_series_is_bounded() {
    let origin = Origin::start(Auth::Anonymous);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&origin, dir.path()).await;
    let hostile = async |n: usize| {
        let status = 400 + (n % 200) as u16;
        origin.clear_faults();
        origin.always(
            Target::Everything,
            Fault::Status {
                code: status,
                retry_after_secs: None,
            },
        );
        for (method, path) in [
            (format!("HOSTILE{n}"), format!("/v2/hostile{n}/blobs/sha256:00")),
            (
                "GET".to_owned(),
                format!("/v2/hostile{n}/manifests/hostile{n}?ns={UPSTREAM}"),
            ),
            ("GET".to_owned(), format!("/v2/x/tags/list?ns=hostile{n}.test")),
            ("DELETE".to_owned(), format!("/hostile{n}")),
            ("GET".to_owned(), format!("/headstart/v1/hostile{n}/x")),
        ] {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let url = format!("http://{}{path}", server.address);
            let request = server.http.request(method, url);
            let request = request.header("user-agent", format!("hostile{n}"));
            request.send().await.unwrap().bytes().await.unwrap();
        }
    };
    for n in 0..400 {
        hostile(n).await;
    }
    let after = server.app.metrics.render();
    // Of some 40 metrics the histograms have 17 lines for each label.
    let count = series(&after).len();
    assert!((20..1000).contains(&count), "{count} series");
    assert!(!after.to_lowercase().contains("hostile"), "{after}");
    for n in 400..420 {
        hostile(n).await;
    }
    let more = series(&server.app.metrics.render());
    let before = series(&after);
    let new: Vec<_> = more.keys().filter(|name| !before.contains_key(*name)).collect();
    assert!(new.is_empty(), "{new:?}");
    server.stop().await;
}

/// As `METRICS.md` says: whoever may connect may read numbers, and the names of upstreams; nothing else is in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_and_probes_are_open_and_name_no_repository() {
    let origin = Origin::start(Auth::Anonymous);
    let blob = origin.add_blob(REPOSITORY, noise(1000, 1));
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    let digest = BlobDigestHex::of("the-token");
    std::fs::write(&tokens, format!("somebody:{digest}\n")).unwrap();
    let mut config: Config = support::config(&origin, &dir.path().join("data"));
    config.access.methods = vec![AccessMethod::Token];
    config.access.token_file = Some(tokens);
    let server = Server::with(config).await;
    assert_eq!(server.get(&server.blob_url(&blob)).await.status(), 401);
    let request = server.http.get(server.blob_url(&blob)).bearer_auth("the-token");
    assert_eq!(request.send().await.unwrap().bytes().await.unwrap().len(), 1000);
    for (path, shown) in [
        ("/healthz", "ok"),
        ("/readyz", "ready"),
        ("/metrics", "headstart_requests_total"),
    ] {
        let answer = server.get(&format!("http://{}{path}", server.address)).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert!(answer.headers().contains_key("x-request-id"));
        let text = answer.text().await.unwrap();
        assert!(text.contains(shown), "{path}: {text}");
        for name in [REPOSITORY, "somebody", &blob.to_string()] {
            assert!(!text.contains(name), "{path} says {name}");
        }
    }
    server.stop().await;
}

/// SHA-256 of a text, in hex.
struct BlobDigestHex;

impl BlobDigestHex {
    fn of(text: &str) -> String {
        let digest = headstart_layer_format::BlobDigest::of(text.as_bytes()).to_string();
        digest["sha256:".len()..].to_owned()
    }
}
