//! Secrets in logs.
//!
//! The story: rpardini's docker-registry-proxy logged whole requests, with `Authorization`, when debugging was on; the
//! distribution registry logged upstream URLs with the signatures of its storage, and passwords of its proxy
//! configuration. Logs travel further than secrets should: collectors, tickets, screens.
//!
//! Here the real binary runs with everything logged (its own and its libraries' traces), every kind of secret passes
//! through it, and none of them may be in its standard error or in a body that it makes itself. For the upstream's
//! credentials either the limit on libraries in `main.rs` or the sensitivity of the header is enough; for a client's
//! header only the limit stands between it and the log.

use headstart_loadtest::origin::{Auth, Fault, Listener, Origin, Target, User, basic_header};

use crate::support::{REPOSITORY, UPSTREAM, binary::Binary, noise};

const PASSWORD: &str = "hunter2-upstream-password";
const CLIENT_PASSWORD: &str = "hunter3-client-password";
const CLIENT_TOKEN: &str = "hunter4-client-bearer-token";
const COOKIE: &str = "hunter5-client-cookie";
const QUERY: &str = "hunter6-client-query";
const WRONG_PASSWORD: &str = "hunter7-wrong-password";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_any_log_or_error() {
    let origin = Origin::start(Auth::bearer_for("robot", PASSWORD));
    let blob = origin.add_blob(REPOSITORY, noise(100_000, 1));
    let manifest = origin.add_manifest(
        REPOSITORY,
        Some("latest"),
        "application/vnd.oci.image.manifest.v1+json",
        "{\"schemaVersion\":2}",
    );
    origin.redirect_blobs(true);
    let config = format!(
        "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[upstreams.auth]\nusername = \"robot\"\npassword_env = \"UPSTREAM_PASSWORD\"",
        origin.url()
    );
    let log = "filter = \"trace\"\naccess = \"all\"";
    let mut server = Binary::start(&config, log, &[("UPSTREAM_PASSWORD", PASSWORD)]);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut bodies = String::new();
    let basic = basic_header("client", CLIENT_PASSWORD);
    let bearer = format!("Bearer {CLIENT_TOKEN}");
    for round in 0..2 {
        for (what, shown) in [
            (format!("manifests/{manifest}"), &basic),
            ("manifests/latest".to_owned(), &bearer),
            (format!("blobs/{blob}"), &basic),
            (
                format!("blobs/{}", headstart_layer_format::BlobDigest::of(b"none")),
                &bearer,
            ),
            ("nonsense".to_owned(), &basic),
        ] {
            let url = server.url(&format!("/v2/{REPOSITORY}/{what}?ns={UPSTREAM}&token={QUERY}"));
            let request = http
                .get(url)
                .header("authorization", shown)
                .header("cookie", format!("session={COOKIE}"));
            let response = request.send().await.unwrap();
            let failed = !response.status().is_success();
            let body = response.bytes().await.unwrap_or_default();
            if failed {
                bodies.push_str(&String::from_utf8_lossy(&body));
            }
        }
        // The second time, nothing of the upstream works.
        if round == 0 {
            origin.always(
                Target::Everything,
                Fault::Status {
                    code: 500,
                    retry_after_secs: None,
                },
            );
            origin.expire_tokens();
        }
    }
    // What anybody may read, and what the operator sees.
    let metrics = http.get(server.url("/metrics")).send().await.unwrap();
    bodies.push_str(&metrics.text().await.unwrap());
    for what in ["images", "blobs", "layers"] {
        let listed = server.ask(&["ls", what, "--json"]);
        assert!(listed.contains(REPOSITORY) || what != "images", "{listed}");
        bodies.push_str(&listed);
    }
    server.terminate();
    assert!(server.wait().success());
    let calls = origin.calls();
    let mut secrets = secrets(&[basic], &origin);
    let cdn = calls.iter().filter(|c| c.listener == Listener::Cdn);
    let signed: Vec<String> = cdn.filter_map(|c| c.query.clone()).collect();
    assert!(!signed.is_empty(), "no signed URL was followed");
    secrets.extend(signed);
    assert!(
        calls.iter().any(|c| c.is_token())
            && calls
                .iter()
                .any(|c| { c.authorization.as_deref().is_some_and(|a| a.starts_with("Bearer ")) }),
        "no token was used"
    );
    let log = server.log();
    assert!(log.contains("headstart_server::access"));
    nowhere(&secrets, &log, &bodies);
}

fn nowhere(secrets: &[String], log: &str, bodies: &str) {
    assert!(log.contains("\"level\":\"DEBUG\""));
    for secret in secrets {
        for (place, text) in [("the log", log), ("a body", bodies)] {
            let found = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(found.is_none(), "{secret:?} is in {place}: {found:?}");
        }
    }
}

/// A header's secret, without the scheme.
fn of_header(header: &str) -> String {
    let (_, secret) = header.split_once(' ').expect("a scheme goes first");
    secret.to_owned()
}

/// What upstreams were shown.
fn shown_to(origin: &Origin) -> Vec<String> {
    let calls = origin.calls();
    let shown = calls.iter().filter_map(|call| call.authorization.as_deref());
    shown.map(of_header).collect()
}

/// What clients showed in these headers and elsewhere, what the upstream was shown, and what that is made from.
fn secrets(headers: &[String], origin: &Origin) -> Vec<String> {
    let plain = [PASSWORD, CLIENT_PASSWORD, CLIENT_TOKEN, COOKIE, QUERY, WRONG_PASSWORD];
    let mut secrets: Vec<String> = plain.map(str::to_owned).into();
    secrets.push(of_header(&basic_header("robot", PASSWORD)));
    secrets.extend(headers.iter().map(|header| of_header(header)));
    secrets.extend(shown_to(origin));
    secrets
}

/// Asks for a manifest, a blob, one that is not there, and a list, with each of these shown; the statuses of the manifest,
/// and what was said of failures.
async fn ask_with(server: &Binary, shown: &[String], paths: &[String]) -> (Vec<u16>, String) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let (mut statuses, mut bodies) = (Vec::new(), String::new());
    for shown in shown {
        for (number, path) in paths.iter().enumerate() {
            let url = server.url(&format!("/v2/{path}?ns={UPSTREAM}&token={QUERY}"));
            let request = http.get(url).header("authorization", shown);
            let response = request.header("cookie", COOKIE).send().await.unwrap();
            let status = response.status();
            if number == 0 {
                statuses.push(status.as_u16());
            }
            let body = response.bytes().await.unwrap_or_default();
            if !status.is_success() {
                bodies.push_str(&String::from_utf8_lossy(&body));
            }
        }
    }
    let metrics = http.get(server.url("/metrics")).send().await.unwrap();
    bodies.push_str(&metrics.text().await.unwrap());
    (statuses, bodies)
}

fn paths(origin: &Origin, repository: &str) -> Vec<String> {
    let blob = origin.add_blob(repository, noise(10_000, 1));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = origin.add_manifest(repository, Some("latest"), media_type, "{\"schemaVersion\":2}");
    let none = headstart_layer_format::BlobDigest::of(b"none");
    let paths = [
        format!("manifests/{manifest}"),
        format!("blobs/{blob}"),
        format!("blobs/{none}"),
    ];
    let paths = paths
        .into_iter()
        .chain(["manifests/latest".to_owned(), "tags/list".to_owned()]);
    paths.map(|path| format!("{repository}/{path}")).collect()
}

/// Mode `upstream`: clients' own credentials are shown to the upstream, as they are and for tokens, while the server has
/// some in a file of docker's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_forwarded_secret_is_in_any_log_or_error() {
    for bearer in [true, false] {
        let users = [User::new("client", CLIENT_PASSWORD, &[REPOSITORY])];
        let origin = Origin::start(Auth::users(bearer, &users, &["open/app"]));
        let mut paths = paths(&origin, REPOSITORY);
        paths.extend(self::paths(&origin, "open/app"));
        let dir = tempfile::tempdir().unwrap();
        let robot = of_header(&basic_header("robot", PASSWORD));
        let docker = dir.path().join("config.json");
        std::fs::write(
            &docker,
            format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{robot}\"}}}}}}", origin.address()),
        )
        .unwrap();
        let config = format!(
            "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[upstreams.auth]\ndocker_config_file = \"{}\"\n\
             [access]\nmode = \"upstream\"\nttl_ms = 1\nrefused_ttl_ms = 1",
            origin.url(),
            docker.display()
        );
        let mut server = Binary::start(&config, "filter = \"trace\"\naccess = \"all\"", &[]);
        let shown = [
            basic_header("client", CLIENT_PASSWORD),
            basic_header("client", WRONG_PASSWORD),
            format!("Bearer {CLIENT_TOKEN}"),
        ];
        let (statuses, mut bodies) = ask_with(&server, &shown, &paths).await;
        assert_eq!(statuses[0], 200, "the client's own are shown");
        assert!(statuses[1..].iter().all(|status| *status == 401), "{statuses:?}");
        let passed = shown_to(&origin);
        assert!(passed.contains(&CLIENT_TOKEN.to_owned()), "a token is shown as it is");
        assert_eq!(origin.calls().iter().any(|call| call.is_token()), bearer);
        // Nor when nothing works any more.
        origin.always(
            Target::Everything,
            Fault::Status {
                code: 500,
                retry_after_secs: None,
            },
        );
        origin.expire_tokens();
        bodies.push_str(&ask_with(&server, &shown, &paths).await.1);
        server.terminate();
        assert!(server.wait().success());
        nowhere(&secrets(&shown, &origin), &server.log(), &bodies);
    }
}

/// Passwords and tokens that this server checks itself, and the upstream's in a file of docker's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_ours_is_in_any_log_or_error() {
    use sha2::{Digest as _, Sha256};
    for bearer in [true, false] {
        let auth = match bearer {
            true => Auth::bearer_for("robot", PASSWORD),
            false => Auth::basic("robot", PASSWORD),
        };
        let origin = Origin::start(auth);
        let paths = paths(&origin, REPOSITORY);
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name).display().to_string()
        };
        let robot = of_header(&basic_header("robot", PASSWORD));
        let docker = format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{robot}\"}}}}}}", origin.address());
        let hash = bcrypt::hash(CLIENT_PASSWORD, 4).unwrap();
        let token = headstart_layer_format::digest::hex(&Sha256::digest(CLIENT_TOKEN));
        let config = format!(
            "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[upstreams.auth]\ndocker_config_file = \"{}\"\n\
             [access]\nmethods = [\"password\", \"token\"]\nhtpasswd_file = \"{}\"\ntoken_file = \"{}\"",
            origin.url(),
            file("config.json", docker),
            file("htpasswd", format!("client:{hash}\n")),
            file("tokens", format!("node:{token}\n")),
        );
        let mut server = Binary::start(&config, "filter = \"trace\"\naccess = \"all\"", &[]);
        let shown = [
            basic_header("client", CLIENT_PASSWORD),
            format!("Bearer {CLIENT_TOKEN}"),
            basic_header("node", CLIENT_TOKEN),
            basic_header("client", WRONG_PASSWORD),
            "Bearer hunter8-wrong-token".to_owned(),
        ];
        let (statuses, bodies) = ask_with(&server, &shown, &paths).await;
        assert_eq!(statuses, [200, 200, 200, 401, 401]);
        server.terminate();
        assert!(server.wait().success());
        assert!(!shown_to(&origin).is_empty(), "docker's file was read");
        let mut secrets = secrets(&shown, &origin);
        secrets.extend([hash, token]);
        nowhere(&secrets, &server.log(), &bodies);
    }
}

/// Asks for these paths while the upstream works, and when it does not any more; the first statuses.
async fn ask_in_good_and_bad_times(server: &Binary, origin: &Origin, paths: &[String]) -> (Vec<u16>, String) {
    let shown = [basic_header("client", CLIENT_PASSWORD)];
    let (statuses, mut bodies) = ask_with(server, &shown, paths).await;
    origin.always(
        Target::Everything,
        Fault::Status {
            code: 500,
            retry_after_secs: None,
        },
    );
    origin.expire_tokens();
    bodies.push_str(&ask_with(server, &shown, paths).await.1);
    (statuses, bodies)
}

/// What a credential helper says, also where it makes no sense, and when it fails and talks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_a_helper_is_in_any_log_or_error() {
    use std::os::unix::fs::PermissionsExt as _;
    const TALK: &str = "hunter9-what-a-helper-says-on-the-side";
    let answer = format!("'{{\"Username\":\"robot\",\"Secret\":\"{PASSWORD}\"}}'");
    for (ends, status) in [
        (format!("echo {answer}"), 200),
        (format!("echo {answer}; exit 3"), 502),
        (format!("echo {PASSWORD}"), 502),
        (
            format!("echo '{{\"Username\":\"robot\",\"Secret\":[\"{PASSWORD}\"]}}'"),
            502,
        ),
    ] {
        let origin = Origin::start(Auth::bearer_for("robot", PASSWORD));
        let paths = paths(&origin, REPOSITORY);
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("docker-credential-mine");
        std::fs::write(&helper, format!("#!/bin/sh\necho {TALK} >&2\n{ends}\n")).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[upstreams.auth]\ncredential_helper = \"mine\"\n\
             helper_dir = \"{}\"",
            origin.url(),
            dir.path().display()
        );
        let mut server = Binary::start(&config, "filter = \"trace\"\naccess = \"all\"", &[]);
        let (statuses, bodies) = ask_in_good_and_bad_times(&server, &origin, &paths).await;
        assert_eq!(statuses, [status], "{ends}");
        server.terminate();
        assert!(server.wait().success());
        let mut secrets = secrets(&[], &origin);
        secrets.push(TALK.to_owned());
        nowhere(&secrets, &server.log(), &bodies);
    }
}

/// A refresh token of docker's file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_refresh_token_is_in_any_log_or_error() {
    const REFRESH: &str = "hunter10-identity-token";
    for taken in [REFRESH, "another"] {
        let origin = Origin::start(Auth::Identity {
            refresh_token: taken.to_owned(),
        });
        let paths = paths(&origin, REPOSITORY);
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().join("config.json");
        let of_nobody = of_header(&basic_header("robot", ""));
        let text = format!(
            "{{\"auths\":{{\"{}\":{{\"auth\":\"{of_nobody}\",\"identitytoken\":\"{REFRESH}\"}}}}}}",
            origin.address()
        );
        std::fs::write(&docker, text).unwrap();
        let config = format!(
            "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[upstreams.auth]\ndocker_config_file = \"{}\"",
            origin.url(),
            docker.display()
        );
        let mut server = Binary::start(&config, "filter = \"trace\"\naccess = \"all\"", &[]);
        let (statuses, bodies) = ask_in_good_and_bad_times(&server, &origin, &paths).await;
        assert_eq!(statuses[0] == 200, taken == REFRESH, "{statuses:?}");
        let calls = origin.calls();
        assert!(calls.iter().any(|call| call.is_token() && call.method == "POST"));
        server.terminate();
        assert!(server.wait().success());
        let mut secrets = secrets(&[], &origin);
        secrets.push(REFRESH.to_owned());
        nowhere(&secrets, &server.log(), &bodies);
    }
}

/// A collector that refuses everything, and what it was sent.
async fn refusing_collector() -> (String, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = std::sync::Arc::<std::sync::Mutex<Vec<u8>>>::default();
    let sees = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 16 << 10];
            let len = stream.read(&mut head).await.unwrap_or(0);
            sees.lock().unwrap().extend_from_slice(&head[..len]);
            let _ = stream
                .write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await;
        }
    });
    (url, seen)
}

/// What the collector of traces and metrics is shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_for_a_collector_is_in_any_log_or_error() {
    const KEY: &str = "hunter11-collector-key";
    let origin = Origin::start(Auth::Anonymous);
    let paths = paths(&origin, REPOSITORY);
    let (url, seen) = refusing_collector().await;
    let config = format!(
        "[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[telemetry]\notlp_endpoint = \"{url}\"\n\
         trace_ratio = 1.0\nmetrics_interval_ms = 100",
        origin.url()
    );
    let headers = format!("authorization=Bearer {KEY},x-key={KEY}-too");
    let environment = [("OTEL_EXPORTER_OTLP_HEADERS", headers.as_str())];
    let mut server = Binary::start(&config, "filter = \"trace\"\naccess = \"all\"", &environment);
    let (statuses, bodies) = ask_in_good_and_bad_times(&server, &origin, &paths).await;
    assert_eq!(statuses, [200]);
    let shown = || {
        let seen = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
        [
            "/v1/traces",
            "/v1/metrics",
            &format!("Bearer {KEY}"),
            &format!("{KEY}-too"),
        ]
        .iter()
        .all(|part| seen.contains(part))
    };
    crate::support::until("the collector is shown the key", shown).await;
    server.terminate();
    assert!(server.wait().success());
    let mut secrets = secrets(&[], &origin);
    secrets.push(KEY.to_owned());
    nowhere(&secrets, &server.log(), &bodies);
}

/// A secret where none belongs is an error that names the place. The parser's own message quotes the line, and would be
/// in the journal of every start that failed.
#[test]
fn a_secret_in_the_configuration_is_refused_and_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.toml");
    for wrong in [
        "[upstreams.auth]\nusername = \"robot\"\npassword = \"hunter2\"",
        "auth = \"hunter2\"",
        "url = \"https://robot:hunter2@registry.example\"",
    ] {
        let url = match wrong.starts_with("url") {
            true => "",
            false => "url = \"https://registry.example\"\n",
        };
        std::fs::write(&file, format!("[[upstreams]]\nname = \"a\"\n{url}{wrong}\n")).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_headstart-server"));
        let output = command.arg("--config").arg(&file).output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("failed to"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
