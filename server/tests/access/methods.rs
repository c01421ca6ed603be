//! Passwords and tokens, and the rules for their names.

use std::{fs, path::Path, process::Command};

use headstart_layer_format::digest::hex;
use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Origin, basic_header},
};
use headstart_server::{
    app::App,
    config::{AccessMethod, AccessRule, ChallengePing, Config, UpstreamConfig},
};
use sha2::{Digest as _, Sha256};

use crate::{
    rule,
    support::{Server, UPSTREAM, config, error_of},
    until,
};

const IMAGES: [&str; 4] = ["open/image", "team/app", "secret/app", "nobody/app"];

/// Alice and Bob have passwords, the node a token.
fn secured(origin: &Origin, dir: &Path, rules: Vec<AccessRule>) -> Config {
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    let users = format!("alice:{}\nbob:{}\n", hash("alice's"), hash("bob's"));
    fs::write(dir.join("htpasswd"), users).unwrap();
    let token = hex(&Sha256::digest("node-token"));
    fs::write(dir.join("tokens"), format!("node-1:{token}\n")).unwrap();
    let mut config = config(origin, &dir.join("data"));
    config.access.methods = vec![AccessMethod::Password, AccessMethod::Token];
    config.access.htpasswd_file = Some(dir.join("htpasswd"));
    config.access.token_file = Some(dir.join("tokens"));
    config.access.rules = rules;
    config
}

fn four_images() -> Origin {
    let origin = Origin::start(Auth::Anonymous);
    for (seed, repository) in IMAGES.iter().enumerate() {
        SyntheticImage::tiny(60 + seed as u64).push(&origin, repository, "latest");
    }
    origin
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_decide_by_name_and_nobody_is_challenged_in_vain() {
    let origin = four_images();
    let dir = tempfile::tempdir().unwrap();
    let rules = vec![
        rule(&["anonymous"], &["open/*"]),
        rule(&["alice"], &["team/**"]),
        rule(&["node-*"], &["team/*", "secret/*"]),
    ];
    let server = Server::with(secured(&origin, dir.path(), rules)).await;
    let clients = [
        ("nobody", server.anybody(), [200, 401, 401, 403]),
        ("empty basic", server.client("Basic Og=="), [200, 401, 401, 403]),
        (
            "alice",
            server.client(basic_header("alice", "alice's")),
            [200, 200, 403, 403],
        ),
        ("bob", server.client(basic_header("bob", "bob's")), [200, 403, 403, 403]),
        (
            "wrong",
            server.client(basic_header("alice", "bob's")),
            [200, 401, 401, 403],
        ),
        (
            "unknown",
            server.client(basic_header("carol", "alice's")),
            [200, 401, 401, 403],
        ),
        ("node", server.client("Bearer node-token"), [200, 200, 200, 403]),
        (
            "node by basic",
            server.client(basic_header("node-1", "node-token")),
            [200, 200, 200, 403],
        ),
        (
            "other's token",
            server.client(basic_header("alice", "node-token")),
            [200, 401, 401, 403],
        ),
        ("wrong token", server.client("Bearer node-toke"), [200, 401, 401, 403]),
        ("malformed", server.client("Basic ?"), [200, 401, 401, 403]),
    ];
    // Twice: what was given is in memory then, for whoever may have it.
    for (name, client, wants) in clients.iter().chain(&clients) {
        for (repository, want) in IMAGES.iter().zip(wants) {
            for path in ["manifests/latest", "tags/list"] {
                let answer = client.get(&server.url(&format!("{repository}/{path}"))).await;
                let challenge = answer.headers().get("www-authenticate").cloned();
                let shown = format!("{name} {repository}/{path}");
                assert_eq!(answer.status(), *want, "{shown}");
                assert_eq!(challenge.is_some(), *want == 401, "{shown}");
                if let Some(challenge) = challenge {
                    assert_eq!(challenge, "Basic realm=\"headstart\"");
                }
                match want {
                    401 => assert_eq!(error_of(answer).await.1, "UNAUTHORIZED"),
                    403 => assert_eq!(error_of(answer).await.1, "DENIED"),
                    _ => {}
                }
            }
        }
    }
    // Nothing that was refused reached the upstream.
    assert!(origin.calls().iter().all(|c| !c.path.contains("nobody/")));
    assert!(
        origin.calls().iter().all(|c| c.authorization.is_none()),
        "no client's secret leaves"
    );
    server.stop().await;
}

/// A rule for one upstream says nothing of another that has a repository of the same name, with the same content.
#[tokio::test(flavor = "multi_thread")]
async fn rules_tell_upstreams_apart() {
    let (origin, other) = (four_images(), four_images());
    let dir = tempfile::tempdir().unwrap();
    let of = |who: &str, upstream: &str| AccessRule {
        upstreams: vec![upstream.to_owned()],
        ..rule(&[who], &["team/*"])
    };
    let rules = vec![of("alice", UPSTREAM), of("bob", "*.example"), of("node-*", "*")];
    let mut config = secured(&origin, dir.path(), rules);
    config.upstreams.push(UpstreamConfig::new("other.example", other.url()));
    let server = Server::with(config).await;
    let layer = SyntheticImage::tiny(61).layers[0].digest;
    let clients = [
        (server.client(basic_header("alice", "alice's")), [200, 403]),
        (server.client(basic_header("bob", "bob's")), [403, 200]),
        (server.client("Bearer node-token"), [200, 200]),
        (server.anybody(), [401, 401]),
    ];
    // Twice: what one upstream brought is here for whoever may have it from that one.
    for (client, wants) in clients.iter().chain(&clients) {
        for (upstream, want) in [UPSTREAM, "other.example"].into_iter().zip(wants) {
            for path in [
                "manifests/latest".to_owned(),
                "tags/list".into(),
                format!("blobs/{layer}"),
            ] {
                let url = format!("http://{}/v2/team/app/{path}?ns={upstream}", server.address);
                let shown = format!("{:?} {upstream} {path}", client.authorization);
                assert_eq!(client.status(&url).await, *want, "{shown}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ping_asks_for_credentials_when_nothing_goes_without() {
    let origin = four_images();
    let ask = async |rules: Vec<AccessRule>, ping: ChallengePing| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = secured(&origin, dir.path(), rules);
        config.access.challenge_ping = ping;
        let server = Server::with(config).await;
        let url = format!("http://{}/v2/", server.address);
        let clients = [
            server.anybody(),
            server.client(basic_header("bob", "bob's")),
            server.client(basic_header("bob", "wrong")),
        ];
        let mut got = Vec::new();
        for client in &clients {
            got.push(client.status(&url).await);
        }
        server.stop().await;
        got
    };
    let open = || vec![rule(&["*"], &["open/*"])];
    assert_eq!(ask(vec![], ChallengePing::Auto).await, [401, 200, 401]);
    assert_eq!(ask(vec![], ChallengePing::Never).await, [200, 200, 200]);
    assert_eq!(ask(open(), ChallengePing::Auto).await, [200, 200, 200]);
    assert_eq!(ask(open(), ChallengePing::Always).await, [401, 200, 401]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_are_taken_and_broken_ones_are_not() {
    let origin = four_images();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(secured(&origin, dir.path(), vec![])).await;
    let url = server.url("team/app/manifests/latest");
    let (alice, node) = (
        server.client(basic_header("alice", "alice's")),
        server.client("Bearer node-token"),
    );
    let new = server.client(basic_header("alice", "new"));
    assert_eq!(
        (
            alice.status(&url).await,
            new.status(&url).await,
            node.status(&url).await
        ),
        (200, 401, 200)
    );

    fs::write(dir.path().join("htpasswd"), "alice:$apr1$not$bcrypt\n").unwrap();
    fs::write(dir.path().join("tokens"), "").unwrap();
    until(401, || node.status(&url)).await;
    assert_eq!(alice.status(&url).await, 200, "the broken file changed nothing");
    let hash = bcrypt::hash("new", 4).unwrap();
    fs::write(dir.path().join("htpasswd"), format!("alice:{hash}\n")).unwrap();
    until(200, || new.status(&url)).await;
    assert_eq!(alice.status(&url).await, 401, "the old password is remembered no more");
    server.stop().await;
}

#[tokio::test]
async fn half_a_configuration_does_not_start() {
    let origin = four_images();
    let dir = tempfile::tempdir().unwrap();
    let spoil: [fn(&mut Config); 5] = [
        |c| c.access.htpasswd_file = None,
        |c| c.access.token_file = Some("/nonexistent".into()),
        |c| c.access.rules[0].upstreams = vec!["origin.tset".into()],
        |c| c.access.rules[0].who.clear(),
        |c| c.access.methods.push(AccessMethod::Certificate),
    ];
    for (at, spoil) in spoil.into_iter().enumerate() {
        let mut config = secured(&origin, dir.path(), vec![rule(&["alice"], &[])]);
        spoil(&mut config);
        let error = App::open(config).await.err().map(|e| e.to_string());
        assert!(
            error.as_ref().is_some_and(|e| e.starts_with("use [access]")),
            "{at}: {error:?}"
        );
    }
}

/// skopeo pings first and remembers whether credentials are wanted.
#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_with_a_password_and_not_without() {
    let origin = four_images();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(secured(&origin, dir.path(), vec![])).await;
    let image = format!("docker://{}/{UPSTREAM}/team/app:latest", server.address);
    let inspect = async |credentials: &[&str]| {
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["inspect", "--raw", "--tls-verify=false"])
            .args(credentials)
            .arg(&image);
        skopeo.env("REGISTRY_AUTH_FILE", dir.path().join("auth.json"));
        let output = tokio::task::spawn_blocking(move || skopeo.output()).await.unwrap();
        output.expect("skopeo runs").status.success()
    };
    assert!(!inspect(&[]).await);
    assert!(!inspect(&["--creds", "alice:wrong"]).await);
    assert!(inspect(&["--creds", "alice:alice's"]).await);
    server.stop().await;
}
