//! A registry that names somebody else's token service, to be given the mirror's password (CVE-2026-33540, distribution:
//! the pull-through proxy exchanged its upstream credentials at whatever `realm` the upstream's 401 said).
//!
//! In: 401s with foreign realms, against callers of every kind. Out: no connection to the foreign realm at all, a 403.
//! Invariant: a realm is the upstream's own host, one below it, or one that the operator listed; never less encrypted.
//! Not here: which realms pass (unit tests of `upstream/realm.rs`), realms that are pinned but resolve elsewhere (`ssrf`).

use headstart_loadtest::origin::{Auth, Fault, Origin, Target, basic_header};
use headstart_server::{
    config::AuthConfig,
    upstream::{Caller, ClientCredentials, UpstreamError},
};

use crate::support::{REPOSITORY, Server, UPSTREAM, config};

fn foreign(realm: &str) -> Auth {
    Auth::Bearer {
        realm: Some(realm.to_owned()),
        service: "origin.test".into(),
        user: Some(("mirror".into(), "s3cret".into())),
    }
}

async fn server(origin: &Origin, dir: &std::path::Path) -> Server {
    let mut config = config(origin, dir);
    let password_file = dir.join("password");
    std::fs::write(&password_file, "s3cret\n").unwrap();
    config.upstreams[0].auth = Some(AuthConfig {
        username: "mirror".into(),
        password_file: Some(password_file),
        ..AuthConfig::default()
    });
    Server::with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_realm_is_never_asked() {
    // The thief would give a token to anyone, so only the pinning stands between.
    let thief = Origin::start(Auth::bearer());
    let origin = Origin::start(foreign(&format!("{}/token", thief.url())));
    origin.add_manifest(REPOSITORY, Some("a"), "application/vnd.oci.image.index.v1+json", "{}");
    let dir = tempfile::tempdir().unwrap();
    let server = server(&origin, dir.path()).await;
    assert_eq!(server.error(&server.manifest_url("a")).await, (403, "DENIED".into()));
    // Nor for a client's credentials, nor for none.
    let upstream = server.app.upstreams.get(UPSTREAM).unwrap();
    let own = ClientCredentials::new(basic_header("alice", "pa55").parse().unwrap());
    for caller in [Caller::Client(own), Caller::Anybody, Caller::Server] {
        let answer = upstream
            .manifest_head(REPOSITORY, &caller, &"a".parse().unwrap(), &[])
            .await;
        assert_eq!(answer.unwrap_err(), UpstreamError::ForeignRealm, "{caller:?}");
    }
    assert_eq!(thief.calls().len(), 0, "{:#?}", thief.calls());
    server.stop().await;
}

/// A pinned realm that passes the request on: redirects of a token service get no credentials either.
#[tokio::test(flavor = "multi_thread")]
async fn a_realm_that_redirects_is_not_followed() {
    let thief = Origin::start(Auth::bearer());
    let origin = Origin::start(Auth::bearer_for("mirror", "s3cret"));
    origin.add_manifest(REPOSITORY, Some("a"), "application/vnd.oci.image.index.v1+json", "{}");
    let location = format!("{}/token", thief.url());
    origin.always(Target::Token, Fault::Redirect { location });
    let dir = tempfile::tempdir().unwrap();
    let server = server(&origin, dir.path()).await;
    assert_eq!(server.get(&server.manifest_url("a")).await.status(), 502);
    assert!(origin.calls().iter().any(|c| c.is_token()));
    assert_eq!(thief.calls().len(), 0, "{:#?}", thief.calls());
    server.stop().await;
}
