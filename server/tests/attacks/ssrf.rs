//! A mirror made to connect where only it can: the cloud's metadata service, the node's own ports
//! (CVE-2020-13788, Harbor: any URL as a registry to test; CVE-2026-32591, Quay: the proxy cache's upstream host).
//!
//! In: a client's `ns`, and an upstream that redirects or points its token realm inside. Out: no connection.
//! Invariant: `ns` selects from the configured set. A name that an answer brings is judged by the addresses it has at
//! the moment of connecting, so what it resolved to before does not matter.
//! Not here: the classes of addresses (unit tests of `upstream/{address,dial}.rs`).
//!
//! 0.0.0.0 stands for all inner addresses here: connecting to it reaches the loopback interface, so that without the
//! defence the hidden service *would* answer.

use headstart_loadtest::origin::{Auth, Fault, Origin, Target};

use crate::support::{REPOSITORY, Server, binary::Binary, config, noise};

#[tokio::test(flavor = "multi_thread")]
async fn ns_is_a_name_of_the_set_and_never_an_address() {
    let (origin, hidden) = (Origin::start(Auth::Anonymous), Origin::start(Auth::Anonymous));
    for one in [&origin, &hidden] {
        one.add_manifest(REPOSITORY, Some("a"), "application/vnd.oci.image.index.v1+json", "{}");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&origin, dir.path()).await;
    let base = format!("http://{}/v2", server.address);
    for ns in [
        hidden.address().to_string(),
        format!("http%3A%2F%2F{}", hidden.address()),
        format!("origin.test%40{}", hidden.address()),
        "169.254.169.254".into(),
        "localhost".into(),
    ] {
        let url = format!("{base}/{REPOSITORY}/manifests/a?ns={ns}");
        assert_eq!(server.get(&url).await.status(), 404, "{ns}");
    }
    let by_path = format!("{base}/{}/{REPOSITORY}/manifests/a", hidden.address());
    assert!(server.get(&by_path).await.status().is_client_error());
    assert_eq!((origin.calls().len(), hidden.calls().len()), (0, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_a_name_or_address_inside_is_not_followed() {
    let (origin, hidden) = (Origin::start(Auth::Anonymous), Origin::start(Auth::Anonymous));
    let content = noise(1000, 1);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    hidden.add_blob(REPOSITORY, content.clone());
    let port = hidden.address().port();
    let path = format!("v2/{REPOSITORY}/blobs/{digest}");
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&origin, dir.path());
    let hosts = &mut config.upstreams[0].hosts;
    hosts.insert("rebound.test".into(), vec!["0.0.0.0".parse().unwrap()]);
    hosts.insert("mapped.test".into(), vec!["::ffff:0.0.0.0".parse().unwrap()]);
    hosts.insert("metadata.test".into(), vec!["169.254.169.254".parse().unwrap()]);
    let mut trusting = config.clone();
    let server = Server::with(config).await;
    for host in [
        "rebound.test",
        "REBOUND.test",
        "mapped.test",
        "metadata.test",
        "0.0.0.0",
        "[::ffff:0.0.0.0]",
        "0",
        "169.254.169.254",
        "0xa9fea9fe",
        "[fe80::1]",
    ] {
        origin.clear_faults();
        let location = format!("http://{host}:{port}/{path}");
        origin.always(Target::Blobs, Fault::Redirect { location });
        assert_eq!(server.get(&server.blob_url(&digest)).await.status(), 502, "{host}");
    }
    assert_eq!(hidden.calls().len(), 0, "{:#?}", hidden.calls());
    server.stop().await;
    // The same host, listed by the operator, is followed: nothing else stood between.
    trusting.upstreams[0].redirect_hosts = vec!["rebound.test".into()];
    let server = Server::with(trusting).await;
    origin.clear_faults();
    let location = format!("http://rebound.test:{port}/{path}");
    origin.always(Target::Blobs, Fault::Redirect { location });
    assert_eq!(server.fetch(&server.blob_url(&digest)).await.1.unwrap(), content);
    assert_eq!(hidden.calls().len(), 1);
    server.stop().await;
}

/// A host below the upstream's name passes as token realm; its address has to pass too.
#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_realm_that_resolves_inside_is_not_asked() {
    let origin = Origin::start(Auth::Anonymous);
    origin.add_manifest(REPOSITORY, Some("a"), "application/vnd.oci.image.index.v1+json", "{}");
    // Pins are by port, so the realm is on the registry's own; only its address is not the registry's.
    origin.set_auth(Auth::Bearer {
        realm: Some(format!("http://auth.origin.test:{}/token", origin.address().port())),
        service: "origin.test".into(),
        user: None,
    });
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&origin, dir.path());
    let one = &mut config.upstreams[0];
    one.hosts
        .insert("auth.origin.test".into(), vec!["0.0.0.0".parse().unwrap()]);
    one.url = one.url.replace("127.0.0.1", "registry.origin.test");
    one.hosts
        .insert("registry.origin.test".into(), vec!["127.0.0.1".parse().unwrap()]);
    let mut trusting = config.clone();
    let server = Server::with(config).await;
    assert_eq!(server.get(&server.manifest_url("a")).await.status(), 502);
    assert!(!origin.calls().iter().any(|c| c.is_token()), "{:#?}", origin.calls());
    server.stop().await;
    trusting.upstreams[0].token_hosts = vec!["auth.origin.test".into()];
    let server = Server::with(trusting).await;
    assert_eq!(server.get(&server.manifest_url("a")).await.status(), 200);
    assert!(origin.calls().iter().any(|c| c.is_token()));
    server.stop().await;
}

/// With a proxy, names that `NO_PROXY` excepts are connected to from here, and those are the ones inside.
#[test]
fn what_goes_past_the_proxy_is_checked_too() {
    let (origin, hidden) = (Origin::start(Auth::Anonymous), Origin::start(Auth::Anonymous));
    let content = noise(1000, 1);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    hidden.add_blob(REPOSITORY, content);
    let port = hidden.address().port();
    let location = format!("http://localhost:{port}/v2/{REPOSITORY}/blobs/{digest}");
    origin.always(Target::Blobs, Fault::Redirect { location });
    // The origin plays the proxy: it takes whole URLs as well. So the registry's own address is never known here.
    let config = "[[upstreams]]\nname = \"origin.test\"\nurl = \"http://registry.test\"\nproxy = \"system\"\n";
    let proxy = format!("http://{}", origin.address());
    let environment = [
        ("HTTP_PROXY", proxy.as_str()),
        ("http_proxy", proxy.as_str()),
        ("NO_PROXY", "localhost"),
        ("no_proxy", "localhost"),
    ];
    let server = Binary::start(config, "", &environment);
    let url = server.url(&format!("/v2/{REPOSITORY}/blobs/{digest}?ns=origin.test"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = runtime.block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.get(url).send().await.unwrap().status()
    });
    assert_eq!(status, 502);
    assert!(!origin.calls().is_empty(), "the proxy was used");
    assert_eq!(hidden.calls().len(), 0, "{:#?}", hidden.calls());
}
