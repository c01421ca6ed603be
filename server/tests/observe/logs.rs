//! Lines: each with the name of its request, and not more of them than somebody can read.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};

use super::{
    client,
    support::{REPOSITORY, UPSTREAM, binary::Binary, noise},
    upstream,
};

const ID: &str = "pull-17.of_node-3";

/// A blob that breaks off once (a line of the fetch, which is a task of its own), and one that cannot be had (a line of
/// the answer, and one about the request). The answers carry the name too.
async fn provoke(server: &Binary, origin: &Origin) {
    let http = client();
    let broken = origin.add_blob(REPOSITORY, noise(400_000, 1));
    let missing = origin.add_blob(REPOSITORY, noise(1000, 2));
    origin.once(Target::Digest(broken), Fault::Truncate { after: 200_000 });
    origin.always(
        Target::Digest(missing),
        Fault::Status {
            code: 502,
            retry_after_secs: None,
        },
    );
    for (digest, status) in [(broken, 200), (missing, 502)] {
        let url = server.url(&format!("/v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM}"));
        let answer = http.get(url).header("x-request-id", ID).send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["x-request-id"], ID);
        assert_eq!(answer.bytes().await.unwrap().len() == 400_000, status == 200);
    }
    // A name that is none is replaced, and gets into no line.
    let url = server.url(&format!("/v2/{REPOSITORY}/manifests/none?ns={UPSTREAM}"));
    let answer = http
        .get(url)
        .header("x-request-id", "a b\" level=error")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 404);
    let id = answer.headers()["x-request-id"].to_str().unwrap();
    assert!(
        !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        "{id}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_a_request_has_its_name_also_when_the_fetch_writes_it() {
    let origin = Origin::start(Auth::Anonymous);
    // A level at which the spans would not be there if they were of the level of information.
    let filter = "filter = \"info,headstart_server::http::around=warn,headstart_server::read::blobs=warn,\
                  headstart_server::read::whole=warn\"";
    let mut server = Binary::start(&upstream(&origin), filter, &[]);
    provoke(&server, &origin).await;
    server.terminate();
    assert!(server.wait().success());
    let ids = |target: &str| -> Vec<String> {
        let lines = server.lines(target);
        assert!(!lines.is_empty(), "no line of {target}: {}", server.log());
        let id = |line: &serde_json::Value| {
            let spans = line["spans"].as_array().cloned().unwrap_or_default();
            let own = line["fields"]["request_id"].as_str().map(str::to_owned);
            own.or(spans.iter().find_map(|s| s["request_id"].as_str().map(str::to_owned)))
        };
        lines
            .iter()
            .map(|line| id(line).unwrap_or_else(|| line.to_string()))
            .collect()
    };
    assert!(ids("headstart_server::read::run").iter().all(|id| id == ID));
    assert!(ids("headstart_server::http::error").iter().all(|id| id == ID));
    assert!(ids("headstart_server::access").iter().any(|id| id == ID));
    assert!(!server.log().contains("level=error"));
}

/// The default: of what went well there is no line, whatever its form; how the rest ended is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_went_wrong_has_a_line_and_it_says_how_it_ended() {
    let origin = Origin::start(Auth::Anonymous);
    let mut server = Binary::start(&upstream(&origin), "access = \"errors\"", &[]);
    let http = client();
    let digest = origin.add_blob(REPOSITORY, noise(3 << 20, 5));
    let url = server.url(&format!("/v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM}"));
    // Cold and followed, warm, a part, nothing but a head, and nothing at all.
    for (method, header, status) in [
        ("GET", ("x-form", "whole"), 200),
        ("GET", ("x-form", "again"), 200),
        ("GET", ("range", "bytes=5-70000"), 206),
        ("GET", ("range", "bytes=0-4,9-12"), 206),
        ("GET", ("range", "bytes=9-4"), 416),
        ("HEAD", ("x-form", "head"), 200),
        ("HEAD", ("if-none-match", "*"), 304),
        ("GET", ("if-none-match", "*"), 304),
        ("GET", ("if-match", "\"other\""), 412),
    ] {
        let request = http.request(method.parse().unwrap(), &url).header(header.0, header.1);
        let answer = request
            .header("x-request-id", format!("{status}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status, "{method} {header:?}");
        answer.bytes().await.unwrap();
    }
    let gone = BlobDigest::of(b"gone");
    let missing = server.url(&format!("/v2/{REPOSITORY}/blobs/{gone}?ns={UPSTREAM}"));
    let answer = http
        .head(&missing)
        .header("x-request-id", "head-404")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 404);
    // A client that leaves: the rest of what it asked for is held back.
    let held = origin.add_blob(REPOSITORY, noise(3 << 20, 6));
    let gate = origin.hold(Target::Digest(held), 1 << 20);
    let left = server.url(&format!("/v2/{REPOSITORY}/blobs/{held}?ns={UPSTREAM}"));
    let mut answer = http.get(&left).header("x-request-id", "leaves").send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    drop(answer);
    drop(http);
    gate.open();
    server.terminate();
    assert!(server.wait().success());
    let said = |line: &serde_json::Value| {
        let fields = &line["fields"];
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        (text("request_id"), fields["status"].as_u64().unwrap(), text("end"))
    };
    let mut lines: Vec<_> = server.lines("headstart_server::access").iter().map(said).collect();
    lines.sort();
    let line = |id: &str, status, end: &str| (id.to_owned(), status, end.to_owned());
    assert_eq!(
        lines,
        [
            line("412", 412, "complete"),
            line("416", 416, "complete"),
            line("head-404", 404, "complete"),
            line("leaves", 200, "left"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_for_people_have_it_too() {
    let origin = Origin::start(Auth::Anonymous);
    let mut server = Binary::start(&upstream(&origin), "format = \"human\"", &[]);
    provoke(&server, &origin).await;
    server.terminate();
    assert!(server.wait().success());
    let log = server.log();
    for what in ["blob broke off", "request failed"] {
        let line = log
            .lines()
            .find(|l| l.contains(what))
            .unwrap_or_else(|| panic!("{what}: {log}"));
        assert!(line.contains(&format!("request_id={ID}")), "{line}");
    }
    assert!(!log.contains("level=error"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_for_nonsense_fills_no_disk_and_is_counted() {
    let origin = Origin::start(Auth::Anonymous);
    let mut server = Binary::start(&upstream(&origin), "lines_per_sec_max = 5", &[]);
    let (http, started) = (client(), std::time::Instant::now());
    const REQUESTS: usize = 600;
    for n in 0..REQUESTS {
        let url = server.url(&format!("/v2/x{n}/nonsense/{n}"));
        assert_eq!(http.get(url).send().await.unwrap().status(), 404);
    }
    server.terminate();
    assert!(server.wait().success());
    let seconds = started.elapsed().as_secs() as usize + 2;
    let lines = server.lines("headstart_server::access").len();
    assert!(lines >= 5 && lines <= 5 * seconds, "{lines} lines in {seconds} s");
    let reports = server.lines("headstart_server::log::limit");
    let left_out: u64 = reports.iter().filter_map(|line| line["fields"]["lines"].as_u64()).sum();
    assert_eq!(lines + left_out as usize, REQUESTS);
}
