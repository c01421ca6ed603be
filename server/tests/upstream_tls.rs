//! TLS towards upstreams: an authority of the operator's, and a certificate of ours.
//!
//! In: a small TLS server that wants a client certificate. Out: whether its manifests can be read.
//! Invariant: every certificate is made here.
//! Not here: TLS towards clients.

use std::{net::SocketAddr, path::Path, sync::Arc};

use headstart_server::{
    config::{FetchConfig, UpstreamConfig},
    metrics::Metrics,
    upstream::{Caller, Upstream, UpstreamError},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Leaf {
    pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn leaf(&self, name: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Leaf {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            key,
        }
    }
}

/// Answers every request with an empty index, to those who show a certificate of `clients`.
async fn serve(leaf: Leaf, clients: &Authority) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(clients.0.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let key = PrivateKeyDer::Pkcs8(leaf.key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![leaf.der], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn read(config: &UpstreamConfig) -> Result<(), UpstreamError> {
    let upstream = Upstream::new(config, "u", &FetchConfig::default(), Metrics::new()).unwrap();
    let tag = "a".parse().unwrap();
    let answer = upstream.manifest("r", &Caller::Server, &tag, &[], 1 << 20).await;
    answer.map(drop)
}

#[tokio::test]
async fn an_own_authority_and_an_own_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, clients) = (Authority::new(), Authority::new());
    let address = serve(authority.leaf("registry.test"), &clients).await;
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let mut config = UpstreamConfig::new("u", format!("https://registry.test:{}", address.port()));
    config.hosts.insert("registry.test".into(), vec![address.ip()]);
    let failed = |answer| matches!(answer, Err(UpstreamError::Unreachable(_)));
    assert!(failed(read(&config).await), "an unknown authority");
    config.ca_file = Some(write("ca.pem", &authority.0.pem()));
    assert!(failed(read(&config).await), "no certificate of ours");
    let own = clients.leaf("mirror.test");
    config.client_cert_file = Some(write("client.pem", &own.pem));
    config.client_key_file = Some(write("client.key", &own.key.serialize_pem()));
    assert_eq!(read(&config).await, Ok(()));
    let foreign = Authority::new().leaf("mirror.test");
    config.client_cert_file = Some(write("foreign.pem", &foreign.pem));
    config.client_key_file = Some(write("foreign.key", &foreign.key.serialize_pem()));
    assert!(failed(read(&config).await), "a certificate of another authority");
    config.ca_file = Some(write("foreign-ca.pem", &clients.0.pem()));
    assert!(failed(read(&config).await), "another authority");
}

#[test]
fn files_that_are_no_certificates_are_named_and_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret.pem");
    std::fs::write(&file, "hunter2").unwrap();
    let wrong = |change: fn(&mut UpstreamConfig, &Path)| {
        let mut config = UpstreamConfig::new("u", "https://registry.test");
        change(&mut config, &file);
        Upstream::new(&config, "u", &FetchConfig::default(), Metrics::new()).unwrap_err()
    };
    for message in [
        wrong(|c, f| c.ca_file = Some(f.to_owned())),
        wrong(|c, f| {
            c.client_cert_file = Some(f.to_owned());
            c.client_key_file = Some(f.to_owned());
        }),
    ] {
        assert!(
            message.contains("secret.pem") && !message.contains("hunter2"),
            "{message}"
        );
    }
    let lonely = wrong(|c, f| c.client_cert_file = Some(f.to_owned()));
    assert!(lonely.contains("need each other"), "{lonely}");
}
