//! What an upstream is asked, as whom, how often, and how its trouble is met.
//!
//! In: the scripted origin as registry, mirror and CDN. Out: answers of [`Upstream`], and what the origin saw.
//! Invariant: times are asserted only from below, where a mechanism guarantees them.
//! Not here: secrets' sources (`upstream_secrets.rs`), TLS (`upstream_tls.rs`), hostile registries (`attacks/`).

use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Call, Fault, Origin, Target, basic_header};
use headstart_server::{
    config::{AuthConfig, FetchConfig, UpstreamConfig},
    metrics::Metrics,
    upstream::{BlobAnswer, BlobBody, Caller, ClientCredentials, Health, RangeAnswer, Upstream, UpstreamError},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const REPOSITORY: &str = "team/app";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn upstream(config: &UpstreamConfig) -> Upstream {
    Upstream::new(config, &config.name, &FetchConfig::default(), Metrics::new()).unwrap()
}

fn of(origin: &Origin) -> UpstreamConfig {
    UpstreamConfig::new("origin.test", origin.url())
}

fn with_tag(auth: Auth) -> Origin {
    let origin = Origin::start(auth);
    origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, "{}");
    origin
}

async fn head(upstream: &Upstream, caller: &Caller) -> Result<(), UpstreamError> {
    let head = upstream
        .manifest_head(REPOSITORY, caller, &"a".parse().unwrap(), &[])
        .await;
    head.map(drop)
}

async fn manifest(upstream: &Upstream, caller: &Caller) -> Result<(), UpstreamError> {
    let tag = "a".parse().unwrap();
    let answer = upstream.manifest(REPOSITORY, caller, &tag, &[], 1 << 20).await;
    answer.map(drop)
}

async fn read(mut body: BlobBody) -> Result<Vec<u8>, UpstreamError> {
    let mut out = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

async fn blob(upstream: &Upstream, digest: &BlobDigest, from: u64) -> Result<Vec<u8>, UpstreamError> {
    match upstream.blob(REPOSITORY, &Caller::Server, digest, from).await? {
        BlobAnswer::Body(body) => read(body).await,
        BlobAnswer::Complete { size } => panic!("complete at {size}"),
    }
}

fn client(authorization: &str) -> Caller {
    Caller::Client(ClientCredentials::new(authorization.parse().unwrap()))
}

/// An upstream with the server's own `mirror:s3cret`.
fn with_password(origin: &Origin, dir: &std::path::Path) -> UpstreamConfig {
    let password_file = dir.join("password");
    std::fs::write(&password_file, "s3cret\n").unwrap();
    let mut config = of(origin);
    config.auth = Some(AuthConfig {
        username: "mirror".into(),
        password_file: Some(password_file),
        ..AuthConfig::default()
    });
    config
}

fn shown(calls: &[Call]) -> Vec<Option<&str>> {
    calls.iter().map(|c| c.authorization.as_deref()).collect()
}

#[tokio::test]
async fn nobody_is_served_with_what_another_caller_has() {
    let dir = tempfile::tempdir().unwrap();
    for auth in [Auth::bearer_for("mirror", "s3cret"), Auth::basic("mirror", "s3cret")] {
        let origin = with_tag(auth);
        let upstream = upstream(&with_password(&origin, dir.path()));
        // The server's own token or Basic is there and warm.
        assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
        assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
        origin.clear_calls();
        for other in [
            Caller::Anybody,
            client(&basic_header("eve", "guess")),
            client("Bearer stolen"),
        ] {
            let denied = head(&upstream, &other).await;
            assert_eq!(denied, Err(UpstreamError::Denied { status: 401 }), "{other:?}");
        }
        let own = basic_header("mirror", "s3cret");
        let calls = origin.calls();
        assert!(!shown(&calls).contains(&Some(own.as_str())), "{calls:#?}");
        // And one with good credentials of his own is, warm and cold.
        let good = client(&own);
        assert_eq!(head(&upstream, &good).await, Ok(()));
        origin.clear_calls();
        assert_eq!(head(&upstream, &good).await, Ok(()));
        assert_eq!(origin.calls().len(), 1, "remembered");
    }
}

#[tokio::test]
async fn a_clients_own_token_is_shown_as_it_is() {
    let origin = with_tag(Auth::bearer());
    let upstream = upstream(&of(&origin));
    assert_eq!(head(&upstream, &Caller::Anybody).await, Ok(()));
    let token = origin.calls().last().unwrap().authorization.clone().unwrap();
    origin.clear_calls();
    assert_eq!(head(&upstream, &client(&token)).await, Ok(()));
    assert_eq!(shown(&origin.calls()), [Some(token.as_str())]);
    origin.expire_tokens();
    let denied = head(&upstream, &client(&token)).await;
    assert_eq!(denied, Err(UpstreamError::Denied { status: 401 }));
    assert!(!origin.calls().iter().any(Call::is_token), "it is not exchanged");
}

#[tokio::test]
async fn parts_of_blobs_are_never_more_than_asked() {
    let origin = Origin::start(Auth::Anonymous);
    let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let upstream = upstream(&of(&origin));
    let ask = async |range| upstream.blob_range(REPOSITORY, &Caller::Server, &digest, range).await;
    let size = content.len() as u64;
    let Ok(RangeAnswer::Part(body)) = ask(10..1_000).await else {
        panic!("a part")
    };
    assert_eq!((body.start, body.end, body.size), (10, Some(1_000), Some(size)));
    assert_eq!(read(body).await.unwrap(), content[10..1_000]);
    let Ok(RangeAnswer::Part(body)) = ask(size - 5..size + 5).await else {
        panic!("a clamped part")
    };
    assert_eq!(body.end, Some(size));
    assert_eq!(read(body).await.unwrap(), content[content.len() - 5..]);
    assert!(matches!(ask(size..size + 1).await, Ok(RangeAnswer::PastEnd { size: s }) if s == size));
    assert!(ask(std::ops::Range { start: 7, end: 7 }).await.is_err());
    origin.always(Target::Blobs, Fault::IgnoreRange);
    let Ok(RangeAnswer::Whole(body)) = ask(10..1_000).await else {
        panic!("everything")
    };
    assert_eq!(read(body).await.unwrap(), content);
}

#[tokio::test]
async fn mirrors_are_asked_while_the_upstream_is_out_of_order_and_never_with_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let (origin, mirror) = (with_tag(Auth::basic("mirror", "s3cret")), with_tag(Auth::Anonymous));
    let mut config = with_password(&origin, dir.path());
    config.fallback_urls = vec![mirror.url()];
    let upstream = upstream(&config);
    assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
    assert_eq!(mirror.calls().len(), 0);
    let not_there = "b".parse().unwrap();
    let missing = async || {
        upstream
            .manifest_head(REPOSITORY, &Caller::Server, &not_there, &[])
            .await
            .map(drop)
    };
    assert_eq!(missing().await, Err(UpstreamError::NotFound { name_unknown: false }));
    assert_eq!(mirror.calls().len(), 0, "a no of the upstream is an answer");
    origin.stop();
    assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
    assert_eq!(shown(&mirror.calls()), [None]);
    assert!(
        matches!(missing().await, Err(UpstreamError::Unreachable(_))),
        "a mirror's no is none"
    );
    mirror.set_auth(Auth::basic("mirror", "s3cret"));
    mirror.clear_calls();
    assert!(matches!(
        head(&upstream, &Caller::Server).await,
        Err(UpstreamError::Unreachable(_))
    ));
    assert_eq!(shown(&mirror.calls()), [None]);
    // What a client may see is not for a mirror to say.
    mirror.set_auth(Auth::Anonymous);
    mirror.clear_calls();
    for caller in [client(&basic_header("mirror", "s3cret")), Caller::Anybody] {
        assert!(matches!(
            head(&upstream, &caller).await,
            Err(UpstreamError::Unreachable(_))
        ));
    }
    assert_eq!(mirror.calls().len(), 0);
}

#[tokio::test]
async fn an_upstream_that_fails_is_left_alone_until_one_probe_succeeds() {
    let origin = with_tag(Auth::Anonymous);
    let mut config = of(&origin);
    config.breaker.failures_max = 3;
    config.breaker.open_ms = 2_000;
    let metrics = Metrics::new();
    let upstream = Upstream::new(&config, &config.name, &FetchConfig::default(), metrics.clone()).unwrap();
    assert_eq!(upstream.health(), Health::Unknown);
    let out = Fault::Status {
        code: 503,
        retry_after_secs: None,
    };
    origin.always(Target::Manifests, out);
    for _ in 0..3 {
        assert_eq!(head(&upstream, &Caller::Server).await, Err(UpstreamError::Status(503)));
    }
    origin.clear_calls();
    for _ in 0..20 {
        let refused = head(&upstream, &Caller::Server).await;
        assert!(matches!(refused, Err(UpstreamError::CircuitOpen { .. })), "{refused:?}");
    }
    assert_eq!(origin.calls().len(), 0);
    assert_eq!(upstream.health(), Health::Down);
    let shows = |line: &str| metrics.render().lines().any(|l| l == line);
    assert!(shows("headstart_upstream_breakers_open{upstream=\"origin.test\"} 1"));
    assert!(shows(
        "headstart_upstream_breaker_openings_total{upstream=\"origin.test\"} 1"
    ));
    origin.clear_faults();
    let deadline = Instant::now() + Duration::from_secs(30);
    while head(&upstream, &Caller::Server).await.is_err() {
        assert!(Instant::now() < deadline, "it opens again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(origin.calls().len(), 1, "the probe, and no other before it");
    assert!(matches!(upstream.health(), Health::Good { .. }));
    assert!(shows("headstart_upstream_breakers_open{upstream=\"origin.test\"} 0"));
}

#[tokio::test]
async fn what_is_missing_denied_or_limited_opens_no_breaker() {
    let origin = with_tag(Auth::Anonymous);
    let mut config = of(&origin);
    config.breaker.failures_max = 1;
    let upstream = upstream(&config);
    for code in [401, 403, 404, 429] {
        let fault = Fault::Status {
            code,
            retry_after_secs: None,
        };
        origin.times(3, Target::Manifests, fault);
        for _ in 0..3 {
            assert!(manifest(&upstream, &Caller::Server).await.is_err());
        }
    }
    assert_eq!(manifest(&upstream, &Caller::Server).await, Ok(()));
}

#[tokio::test]
async fn bodies_that_break_off_count_once_each() {
    let origin = with_tag(Auth::Anonymous);
    let digest = origin.add_blob(REPOSITORY, vec![7; 300_000]);
    origin.always(Target::Blobs, Fault::Truncate { after: 200_000 });
    let mut config = of(&origin);
    config.breaker.failures_max = 2;
    let upstream = upstream(&config);
    assert!(matches!(
        blob(&upstream, &digest, 0).await,
        Err(UpstreamError::Unreachable(_))
    ));
    // Its heads were fine; that hides nothing.
    assert!(matches!(
        blob(&upstream, &digest, 0).await,
        Err(UpstreamError::Unreachable(_))
    ));
    assert!(matches!(
        blob(&upstream, &digest, 0).await,
        Err(UpstreamError::CircuitOpen { .. })
    ));
}

#[tokio::test]
async fn a_limit_is_respected_without_asking_and_a_head_costs_nothing() {
    let origin = with_tag(Auth::Anonymous);
    let upstream = upstream(&of(&origin));
    let limited = Fault::Status {
        code: 429,
        retry_after_secs: Some(2),
    };
    origin.once(Target::Manifests, limited);
    let refused = Err(UpstreamError::TooManyRequests {
        retry_after_secs: Some(2),
    });
    let began = Instant::now();
    assert_eq!(manifest(&upstream, &Caller::Server).await, refused);
    let held = manifest(&upstream, &Caller::Server).await;
    assert!(matches!(
        held,
        Err(UpstreamError::TooManyRequests {
            retry_after_secs: Some(1..=2)
        })
    ));
    assert_eq!(origin.calls().len(), 1, "the second was not sent");
    assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
    // A client's account has limits of its own.
    assert_eq!(manifest(&upstream, &client("Bearer own")).await, Ok(()));
    while manifest(&upstream, &Caller::Server).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "the hold ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn the_counter_of_docker_hub_is_watched() {
    let origin = with_tag(Auth::Anonymous);
    let upstream = upstream(&of(&origin));
    let remaining = |n: u32| Fault::Header {
        name: "ratelimit-remaining",
        value: format!("{n};w=21600"),
    };
    origin.always(Target::Manifests, remaining(0));
    assert_eq!(manifest(&upstream, &Caller::Server).await, Ok(()), "the last one");
    let held = manifest(&upstream, &Caller::Server).await;
    assert!(matches!(
        held,
        Err(UpstreamError::TooManyRequests {
            retry_after_secs: Some(_)
        })
    ));
    assert_eq!(origin.calls().len(), 1);
    origin.clear_faults();
    origin.always(Target::Manifests, remaining(5));
    assert_eq!(
        head(&upstream, &Caller::Server).await,
        Ok(()),
        "and shows that there are more"
    );
    assert_eq!(manifest(&upstream, &Caller::Server).await, Ok(()));
}

#[tokio::test]
async fn budgets_are_kept() {
    let origin = with_tag(Auth::Anonymous);
    let mut config = of(&origin);
    config.requests_per_sec_max = 20;
    let limited = upstream(&config);
    let began = Instant::now();
    for _ in 0..40 {
        assert_eq!(head(&limited, &Caller::Server).await, Ok(()));
    }
    // A second's worth at once, then one each 50 ms.
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());
    config.requests_per_sec_max = 1;
    config.queue_timeout_ms = 1;
    let impatient = upstream(&config);
    let mut busy = 0;
    for _ in 0..60 {
        busy += u32::from(head(&impatient, &Caller::Server).await == Err(UpstreamError::Busy));
    }
    assert!(busy > 0);

    let mut config = of(&origin);
    config.bytes_per_sec_max = 1 << 20;
    let narrow = upstream(&config);
    let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let began = Instant::now();
    let (one, two) = tokio::join!(blob(&narrow, &digest, 0), blob(&narrow, &digest, 0));
    assert!(one.unwrap() == content && two.unwrap() == content);
    // 2 MiB, a quarter of a second's worth of them at once.
    assert!(began.elapsed() >= Duration::from_millis(1_700), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_place_is_held_until_the_body_is_through_and_the_wait_for_one_ends() {
    let origin = with_tag(Auth::Anonymous);
    let digest = origin.add_blob(REPOSITORY, vec![7; 1_000_000]);
    let gate = origin.hold(Target::Blobs, 10);
    let mut config = of(&origin);
    config.requests_max = 1;
    config.queue_timeout_ms = 100;
    let upstream = upstream(&config);
    let Ok(BlobAnswer::Body(body)) = upstream.blob(REPOSITORY, &Caller::Server, &digest, 0).await else {
        panic!("a body")
    };
    assert_eq!(head(&upstream, &Caller::Server).await, Err(UpstreamError::Busy));
    gate.open();
    assert_eq!(read(body).await.unwrap().len(), 1_000_000);
    assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
}

#[tokio::test]
async fn an_upstream_may_have_time_outs_of_its_own() {
    let origin = with_tag(Auth::Anonymous);
    let mut config = of(&origin);
    config.header_timeout_ms = Some(200);
    origin.always(Target::Manifests, Fault::DelayHeaders(Duration::from_secs(600)));
    let hasty = upstream(&config);
    let answer = tokio::time::timeout(Duration::from_secs(15), head(&hasty, &Caller::Server));
    assert_eq!(answer.await, Ok(Err(UpstreamError::Timeout)), "below the general 20 s");
    let digest = origin.add_blob(REPOSITORY, vec![7; 100_000]);
    let stall = Fault::Stall {
        after: 1_000,
        pause: Duration::from_secs(600),
    };
    origin.always(Target::Blobs, stall);
    config.idle_timeout_ms = Some(200);
    let impatient = upstream(&config);
    let answer = tokio::time::timeout(Duration::from_secs(15), blob(&impatient, &digest, 0));
    assert_eq!(answer.await, Ok(Err(UpstreamError::Timeout)), "below the general 30 s");
}

/// An address that takes no connection: its queue is full, and nobody empties it.
async fn silent_listener() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 100, "the queue has no end");
    }
    (listener, queued)
}

#[tokio::test]
async fn an_upstream_may_have_a_time_to_connect_of_its_own() {
    let (listener, _queued) = silent_listener().await;
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut config = UpstreamConfig::new("silent.test", url);
    config.connect_timeout_ms = Some(200);
    let patient = FetchConfig {
        connect_timeout_ms: 600_000,
        header_timeout_ms: 600_000,
        ..FetchConfig::default()
    };
    let hasty = Upstream::new(&config, &config.name, &patient, Metrics::new()).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(15), head(&hasty, &Caller::Server)).await;
    let failed = answer.expect("below the general ten minutes").unwrap_err();
    assert!(failed.is_failure(), "{failed}");
}

#[tokio::test]
async fn offline_is_offline() {
    let origin = with_tag(Auth::Anonymous);
    let mut config = of(&origin);
    let everything = FetchConfig {
        offline: true,
        ..FetchConfig::default()
    };
    let by_fetch = Upstream::new(&config, "u", &everything, Metrics::new()).unwrap();
    config.offline = true;
    for upstream in [upstream(&config), by_fetch] {
        assert_eq!(head(&upstream, &Caller::Server).await, Err(UpstreamError::Offline));
        assert_eq!(upstream.health(), Health::Down);
    }
    assert_eq!(origin.calls().len(), 0);
}

/// A signature that ended between the registry's answer and the CDN's: the registry has another.
#[tokio::test]
async fn a_signed_url_that_ended_is_asked_for_again_once() {
    let origin = Origin::start(Auth::Anonymous);
    let content = vec![7; 100_000];
    let digest = origin.add_blob(REPOSITORY, content.clone());
    origin.redirect_blobs(true);
    let upstream = upstream(&of(&origin));
    for code in [400, 401, 403, 410] {
        let expired = Fault::Status {
            code,
            retry_after_secs: None,
        };
        origin.once(Target::Cdn, expired.clone());
        assert_eq!(blob(&upstream, &digest, 0).await.unwrap(), content);
        origin.once(Target::Cdn, expired.clone());
        assert_eq!(blob(&upstream, &digest, 50_000).await.unwrap(), content[50_000..]);
        origin.clear_calls();
        origin.times(2, Target::Cdn, expired.clone());
        // Not `Denied`: the registry refused nothing.
        assert_eq!(blob(&upstream, &digest, 0).await, Err(UpstreamError::Status(code)));
        assert_eq!(origin.calls().len(), 4);
        // HEAD is answered by the registry's yes, unless another link answers it.
        origin.once(Target::Cdn, expired.clone());
        let size = (code == 400).then_some(content.len() as u64);
        assert_eq!(upstream.blob_head(REPOSITORY, &Caller::Server, &digest).await, Ok(size));
        // That yes is none where no link gives a byte.
        origin.always(Target::Cdn, expired);
        let proof = upstream.blob_proof(REPOSITORY, &Caller::Server, &digest).await;
        assert_eq!(proof, Err(UpstreamError::Status(code)));
        origin.clear_faults();
    }
    // What the registry itself says so is no link that ended.
    origin.clear_calls();
    let bad = Fault::Status {
        code: 400,
        retry_after_secs: None,
    };
    origin.once(Target::Blobs, bad);
    assert_eq!(blob(&upstream, &digest, 0).await, Err(UpstreamError::Status(400)));
    assert_eq!(origin.calls().len(), 1);
    origin.expire_signatures();
    assert_eq!(blob(&upstream, &digest, 1).await.unwrap(), content[1..]);
}

/// A client may be why its requests fail (a header that the upstream does not take), and could shut it for everybody.
#[tokio::test]
async fn clients_cannot_open_the_breaker_for_others() {
    let origin = with_tag(Auth::Anonymous);
    let mut config = of(&origin);
    config.breaker.failures_max = 2;
    let upstream = upstream(&config);
    origin.always(Target::Everything, Fault::ResetAtOnce);
    let mallory = client(&basic_header("mallory", "x"));
    for _ in 0..4 {
        assert!(matches!(
            head(&upstream, &mallory).await,
            Err(UpstreamError::Unreachable(_))
        ));
    }
    origin.clear_faults();
    assert_eq!(head(&upstream, &Caller::Server).await, Ok(()));
    // The server's own failures do.
    origin.always(Target::Everything, Fault::ResetAtOnce);
    for _ in 0..2 {
        assert!(head(&upstream, &Caller::Server).await.is_err());
    }
    let refused = head(&upstream, &mallory).await;
    assert!(matches!(refused, Err(UpstreamError::CircuitOpen { .. })), "{refused:?}");
}

/// Those who want a token of a realm that does not answer waited for it one after the other, each for the whole time.
#[tokio::test]
async fn a_realm_that_does_not_answer_is_waited_for_once() {
    let origin = with_tag(Auth::bearer());
    origin.always(Target::Token, Fault::DelayHeaders(Duration::from_secs(600)));
    let mut config = of(&origin);
    config.header_timeout_ms = Some(1_000);
    let upstream = upstream(&config);
    let all = futures_util::future::join_all((0..20).map(|_| head(&upstream, &Caller::Server))).await;
    let (asked_in_vain, waited_in_vain) = (Err(UpstreamError::Timeout), Err(UpstreamError::Busy));
    assert!(all.contains(&asked_in_vain) && all.contains(&waited_in_vain), "{all:?}");
    assert!(
        all.iter().all(|one| *one == asked_in_vain || *one == waited_in_vain),
        "{all:?}"
    );
    let asked = origin.calls().iter().filter(|c| c.is_token()).count();
    assert!(asked <= 4, "{asked}");
}

/// The limit of an address without an account is not that of the server's account.
#[tokio::test]
async fn limits_of_anybody_do_not_hold_the_servers_account_back() {
    let dir = tempfile::tempdir().unwrap();
    for (with_account, want) in [(true, true), (false, false)] {
        let origin = with_tag(Auth::Anonymous);
        let config = if with_account {
            with_password(&origin, dir.path())
        } else {
            of(&origin)
        };
        let upstream = upstream(&config);
        let empty = Fault::Header {
            name: "ratelimit-remaining",
            value: "0;w=21600".into(),
        };
        origin.once(Target::Everything, empty);
        assert_eq!(head(&upstream, &Caller::Anybody).await, Ok(()));
        assert_eq!(manifest(&upstream, &Caller::Server).await.is_ok(), want);
    }
}
