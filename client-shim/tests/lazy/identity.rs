//! A node that has to say who it is: TLS both ways, and a token, to the real server.
//!
//! In: certificates made here. Out: the layer is shown with the right identity; with another, requests end in errors that
//! are ordinary declines, and nothing else. Not here: what the server makes of names (`server/tests/access`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use headstart_layer_format::digest::hex;
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::Origin;
use headstart_server::app::{App, serve};
use headstart_server::config::{AccessMethod, ClientCertificates, Config, TlsConfig, UpstreamConfig};
use headstart_shim::fetch::{FetchConfig, FetchError, IdentityConfig, Servers};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::support::Node;
use crate::support::node::{fetch_config, lazy_config};

/// `ca.pem`, and `NAME.pem` with `NAME.key` for server and node.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    for (name, san) in [("server", "127.0.0.1"), ("node", "node-1")] {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![san.to_owned()])
            .unwrap()
            .signed_by(&key, &ca)
            .unwrap();
        fs::write(dir.join(format!("{name}.pem")), own.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn a_node_with_its_identity_is_let_in_and_others_are_declined() {
    let image = SyntheticImage::tiny(51);
    let origin = Origin::with_image("team/app", "v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    certificates(dir.path());
    fs::write(at("token"), "the node's token\n").unwrap();
    let hash = hex(&Sha256::digest("the node's token"));
    fs::write(at("tokens"), format!("node-1:{hash}\n")).unwrap();
    let mut tls = TlsConfig::new(at("server.pem"), at("server.key"));
    tls.client_ca_file = Some(at("ca.pem"));
    tls.client_cert = ClientCertificates::Required;
    let mut config = Config {
        data_dir: at("data"),
        default_upstream: Some("origin".into()),
        upstreams: vec![UpstreamConfig::new("origin", origin.url())],
        tls: Some(tls),
        ..Config::default()
    };
    config.access.methods = vec![AccessMethod::Token];
    config.access.token_file = Some(at("tokens"));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let stop = CancellationToken::new();
    let (app, listener) = runtime.block_on(async {
        let app = App::open(config).await.unwrap();
        (app, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    });
    let url = format!("https://{}", listener.local_addr().unwrap());
    let served = runtime.spawn(serve(app, listener, stop.clone()));

    let whole = IdentityConfig {
        ca_file: Some(at("ca.pem")),
        client_cert_file: Some(at("node.pem")),
        client_key_file: Some(at("node.key")),
        token_file: Some(at("token")),
        ..IdentityConfig::default()
    };
    let fetch = |identity: &IdentityConfig| FetchConfig {
        identity: identity.clone(),
        ..fetch_config()
    };
    let image_as = |identity: &IdentityConfig| {
        let servers = Servers::new(std::slice::from_ref(&url), &fetch(identity)).unwrap();
        runtime.block_on(servers.image(&image.manifest_digest, 0))
    };
    let refused = Err(FetchError::Unauthorized { status: 401 });
    let no_token = IdentityConfig {
        token_file: None,
        ..whole.clone()
    };
    assert_eq!(image_as(&no_token), refused);
    fs::write(at("other"), "another token").unwrap();
    let other_token = IdentityConfig {
        token_file: Some(at("other")),
        ..whole.clone()
    };
    assert_eq!(image_as(&other_token), refused);
    let no_certificate = IdentityConfig {
        client_cert_file: None,
        client_key_file: None,
        ..whole.clone()
    };
    let strange_server = IdentityConfig {
        ca_file: None,
        ..whole.clone()
    };
    let missing_files = IdentityConfig {
        token_file: Some(at("nowhere")),
        ..whole.clone()
    };
    for identity in [&no_certificate, &strange_server, &missing_files] {
        let answer = image_as(identity);
        assert!(matches!(answer, Err(FetchError::Unreachable(_))), "{answer:?}");
    }
    assert_eq!(image_as(&whole), Ok(None), "let in, and no image yet");

    // A runtime pulls with the same identity; then the node shows the layer, chunks and all.
    runtime.block_on(async {
        let pem = [fs::read(at("node.key")).unwrap(), fs::read(at("node.pem")).unwrap()].concat();
        let ca = reqwest::Certificate::from_pem(&fs::read(at("ca.pem")).unwrap()).unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([ca]);
        let client = client
            .identity(reqwest::Identity::from_pem(&pem).unwrap())
            .build()
            .unwrap();
        let manifest = client.get(format!("{url}/v2/team/app/manifests/v1"));
        let answer = manifest.bearer_auth("the node's token").send().await.unwrap();
        assert_eq!(answer.status(), 200);
    });
    let root = tempfile::tempdir().unwrap();
    let node = Node::open_as(root.path(), &[url], lazy_config(), &fetch(&whole)).unwrap();
    let layer = &image.layers[0];
    let presented = node.present_within(&layer.digest, Duration::from_secs(25)).unwrap();
    assert_eq!(presented.diff_id, layer.diff_id);
    crate::mount::compare_items(&crate::real_server::items(&layer.oracle), &presented.lowerdir);
    stop.cancel();
    runtime.block_on(served).unwrap().unwrap();
}
