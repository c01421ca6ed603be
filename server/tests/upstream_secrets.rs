//! Where the server's own credentials come from, and that they follow what changes.
//!
//! In: docker's configuration, helpers and files in a temporary directory. Out: what the scripted origin was shown.
//! Invariant: nothing is looked for outside of the temporary directory; helpers are shell scripts found in `helper_dir`.
//! Not here: parsing of those files and of helpers' answers (unit tests in `upstream/`).

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use headstart_loadtest::origin::{Auth, Origin, basic_header};
use headstart_server::{
    config::{AuthConfig, FetchConfig, UpstreamConfig},
    metrics::Metrics,
    upstream::{Caller, Upstream, UpstreamError},
};

const REPOSITORY: &str = "team/app";

/// Sources are looked at again after a second.
const A_CHANGE_SHOWS_AFTER: Duration = Duration::from_millis(1_100);

fn origin(auth: Auth) -> Origin {
    let origin = Origin::start(auth);
    origin.add_manifest(REPOSITORY, Some("a"), "application/vnd.oci.image.index.v1+json", "{}");
    origin
}

fn upstream(name: &str, origin: &Origin, auth: AuthConfig) -> Upstream {
    let mut config = UpstreamConfig::new(name, origin.url());
    config.auth = Some(auth);
    Upstream::new(&config, name, &FetchConfig::default(), Metrics::new()).unwrap()
}

async fn head(upstream: &Upstream) -> Result<(), UpstreamError> {
    let head = upstream
        .manifest_head(REPOSITORY, &Caller::Server, &"a".parse().unwrap(), &[])
        .await;
    head.map(drop)
}

const DENIED: Result<(), UpstreamError> = Err(UpstreamError::Denied { status: 401 });

fn docker_config(dir: &Path, text: &str) -> AuthConfig {
    let file = dir.join("config.json");
    // As `docker login` does it: a new file in the old one's place.
    std::fs::write(dir.join("new"), text).unwrap();
    std::fs::rename(dir.join("new"), &file).unwrap();
    AuthConfig {
        docker_config_file: Some(file),
        helper_dir: Some(dir.to_owned()),
        ..AuthConfig::default()
    }
}

/// A helper that notes what it was asked for, and answers with the password in the file `current`.
fn helper(dir: &Path, name: &str) {
    let file = dir.join(format!("docker-credential-{name}"));
    let dir = dir.display();
    let script = format!(
        "#!/bin/sh\nread server\necho \"$1 $server\" >> {dir}/asked\n\
         echo \"{{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"u\\\",\\\"Secret\\\":\\\"$(cat {dir}/current)\\\"}}\"\n"
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// `auth` of a docker configuration.
fn auth(user: &str, password: &str) -> String {
    basic_header(user, password).replace("Basic ", "")
}

#[tokio::test]
async fn dockers_file_is_looked_up_by_host_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    for wanted in [Auth::basic("u", "one"), Auth::bearer_for("u", "one")] {
        let origin = origin(wanted);
        let text = |password: &str| {
            format!(
                "{{\"auths\":{{\"other.test\":{{\"auth\":\"{}\"}},\"{}\":{{\"auth\":\"{}\"}}}}}}",
                auth("u", "wrong"),
                origin.address(),
                auth("u", password)
            )
        };
        let upstream = upstream("r.test", &origin, docker_config(dir.path(), &text("one")));
        assert_eq!(head(&upstream).await, Ok(()));
        // Rotated on both sides; the token that there may be has ended too.
        match origin.calls().last().unwrap().authorization.as_deref() {
            Some(shown) if shown.starts_with("Basic") => origin.set_auth(Auth::basic("u", "two")),
            _ => origin.set_auth(Auth::bearer_for("u", "two")),
        }
        origin.expire_tokens();
        assert_eq!(head(&upstream).await, DENIED);
        docker_config(dir.path(), &text("two"));
        tokio::time::sleep(A_CHANGE_SHOWS_AFTER).await;
        assert_eq!(head(&upstream).await, Ok(()));
    }
}

#[tokio::test]
async fn docker_hub_has_a_name_of_its_own_there() {
    let dir = tempfile::tempdir().unwrap();
    let origin = origin(Auth::basic("u", "hub"));
    let text = format!(
        "{{\"auths\":{{\"https://index.docker.io/v1/\":{{\"auth\":\"{}\"}}}}}}",
        auth("u", "hub")
    );
    let hub = upstream("docker.io", &origin, docker_config(dir.path(), &text));
    assert_eq!(head(&hub).await, Ok(()));
    let other = upstream("r.test", &origin, docker_config(dir.path(), &text));
    assert_eq!(head(&other).await, DENIED, "what is for Docker Hub is for nobody else");
}

#[tokio::test]
async fn a_refresh_token_is_exchanged_by_post_and_shown_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let refresh_token = "refresh/me+now&then".to_owned();
    let origin = origin(Auth::Identity {
        refresh_token: refresh_token.clone(),
    });
    let text = format!(
        "{{\"auths\":{{\"{}\":{{\"auth\":\"{}\",\"identitytoken\":\"{refresh_token}\"}}}}}}",
        origin.address(),
        auth("u", "")
    );
    let upstream = upstream("r.test", &origin, docker_config(dir.path(), &text));
    assert_eq!(head(&upstream).await, Ok(()));
    let calls = origin.calls();
    let seen = format!("{calls:?}");
    assert!(!seen.contains("refresh/me") && !seen.contains("Basic"), "{calls:#?}");
    assert!(calls.iter().any(|c| c.is_token() && c.method == "POST"));
}

#[tokio::test]
async fn a_helper_is_asked_for_the_registry_and_again_when_what_it_said_is_refused() {
    for by_config in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        helper(dir.path(), "mine");
        std::fs::write(dir.path().join("current"), "one").unwrap();
        let origin = origin(Auth::bearer_for("u", "one"));
        let config = if by_config {
            let text = format!("{{\"credHelpers\":{{\"{}\":\"mine\"}}}}", origin.address());
            docker_config(dir.path(), &text)
        } else {
            AuthConfig {
                credential_helper: Some("mine".into()),
                helper_dir: Some(dir.path().to_owned()),
                ..AuthConfig::default()
            }
        };
        let upstream = upstream("r.test", &origin, config);
        let asked = || std::fs::read_to_string(dir.path().join("asked")).unwrap_or_default();
        assert_eq!(asked(), "", "not before it is needed");
        assert_eq!(head(&upstream).await, Ok(()));
        origin.expire_tokens();
        assert_eq!(head(&upstream).await, Ok(()));
        assert_eq!(
            asked(),
            format!("get {}\n", origin.address()),
            "what it said is good for a while"
        );
        std::fs::write(dir.path().join("current"), "two").unwrap();
        origin.set_auth(Auth::bearer_for("u", "two"));
        origin.expire_tokens();
        tokio::time::sleep(A_CHANGE_SHOWS_AFTER).await;
        assert_eq!(head(&upstream).await, Ok(()));
        assert_eq!(asked().lines().count(), 2);
        // A wrong one does not have it run for every request.
        origin.set_auth(Auth::bearer_for("u", "three"));
        origin.expire_tokens();
        for _ in 0..5 {
            assert_eq!(head(&upstream).await, DENIED);
        }
        assert!(asked().lines().count() <= 4, "{}", asked());
    }
}

#[tokio::test]
async fn what_a_helper_said_gets_old() {
    let dir = tempfile::tempdir().unwrap();
    helper(dir.path(), "mine");
    std::fs::write(dir.path().join("current"), "p").unwrap();
    let origin = origin(Auth::basic("u", "p"));
    let config = AuthConfig {
        credential_helper: Some("mine".into()),
        helper_dir: Some(dir.path().to_owned()),
        helper_fresh_ms: 0,
        ..AuthConfig::default()
    };
    let upstream = upstream("r.test", &origin, config);
    assert_eq!(head(&upstream).await, Ok(()));
    assert_eq!(head(&upstream).await, Ok(()));
    let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
    assert!(asked.lines().count() > 1, "{asked}");
}

#[tokio::test]
async fn a_helper_that_is_not_there_is_our_trouble_and_no_denial() {
    let dir = tempfile::tempdir().unwrap();
    let origin = origin(Auth::bearer_for("u", "p"));
    let config = AuthConfig {
        credential_helper: Some("none".into()),
        helper_dir: Some(dir.path().to_owned()),
        ..AuthConfig::default()
    };
    let upstream = upstream("r.test", &origin, config);
    assert_eq!(head(&upstream).await, Err(UpstreamError::NoCredentials));
    assert!(UpstreamError::NoCredentials.is_outage());
    helper(dir.path(), "none");
    std::fs::write(dir.path().join("current"), "p").unwrap();
    assert_eq!(head(&upstream).await, Ok(()), "and it is asked again");
}
