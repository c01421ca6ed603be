//! TLS and client certificates, with certificates made here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Origin},
};
use headstart_server::{
    app::App,
    config::{AccessMethod, ClientCertificates, Config, TlsConfig},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    rule,
    support::{Server, UPSTREAM, config},
    until,
};

/// An authority, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// PEM of a certificate and of its key.
struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, common_name: &str, sans: &[&str]) -> Signed {
        let mut params = CertificateParams::new(sans.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        Signed {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A client that trusts this authority alone. No connection is kept, so each request is a handshake.
    fn client(&self, own: Option<&Signed>) -> reqwest::Client {
        let root = reqwest::Certificate::from_pem(self.0.pem().as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([root])
            .pool_max_idle_per_host(0);
        if let Some(own) = own {
            let pem = format!("{}\n{}", own.key, own.certificate);
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }
}

impl Signed {
    fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (cert, key) = (dir.join("server.pem"), dir.join("server.key"));
        fs::write(&cert, &self.certificate).unwrap();
        fs::write(&key, &self.key).unwrap();
        (cert, key)
    }
}

fn with_tls(origin: &Origin, dir: &Path, server: &Signed, clients: Option<(&Authority, ClientCertificates)>) -> Config {
    let (cert, key) = server.write(dir);
    let mut tls = TlsConfig::new(cert, key);
    if let Some((authority, wanted)) = clients {
        let file = dir.join("clients.pem");
        fs::write(&file, authority.0.pem()).unwrap();
        tls.client_ca_file = Some(file);
        tls.client_cert = wanted;
    }
    let mut config = config(origin, &dir.join("data"));
    config.tls = Some(tls);
    config
}

fn origin() -> Origin {
    Origin::with_image("team/app", "latest", &SyntheticImage::tiny(71))
}

/// Status, or `None` when there is no connection.
async fn status(client: &reqwest::Client, server: &Server) -> Option<u16> {
    let url = format!("https://{}/v2/{UPSTREAM}/team/app/manifests/latest", server.address);
    Some(client.get(url).send().await.ok()?.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_come_whole_over_both_versions_and_a_silent_peer_holds_nobody_up() {
    let image = SyntheticImage::seeded(72);
    let origin = Origin::start(Auth::Anonymous);
    image.push(&origin, "team/app", "latest");
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_tls(&origin, dir.path(), &authority.sign("server", &["127.0.0.1"]), None);
    if let Some(tls) = &mut config.tls {
        tls.handshakes_max = 32;
        tls.handshake_timeout_ms = 30_000;
    }
    let server = Server::with(config).await;
    let mut silent = Vec::new();
    // One fewer than a client's share: these sit in their handshakes all the time.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&[0x16, 0x03]).await.unwrap();
        silent.push(stream);
    }
    let root = reqwest::Certificate::from_pem(authority.0.pem().as_bytes()).unwrap();
    let builder = || reqwest::Client::builder().no_proxy().tls_certs_only([root.clone()]);
    for (version, client) in [
        (reqwest::Version::HTTP_2, builder().build().unwrap()),
        (reqwest::Version::HTTP_11, builder().http1_only().build().unwrap()),
    ] {
        for layer in &image.layers {
            let url = format!(
                "https://{}/v2/{UPSTREAM}/team/app/blobs/{}",
                server.address, layer.digest
            );
            // Cold, warm, and a part.
            for _ in 0..2 {
                let answer = client.get(&url).send().await.unwrap();
                assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
                assert!(answer.bytes().await.unwrap() == layer.blob);
            }
            let part = client.get(&url).header("range", "bytes=5-9").send().await.unwrap();
            assert_eq!(part.bytes().await.unwrap(), layer.blob[5..10]);
        }
    }
    // Plain HTTP to the TLS port ends without an answer.
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(
        plain
            .get(format!("http://{}/v2/", server.address))
            .send()
            .await
            .is_err()
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_ended() {
    use tokio::io::AsyncReadExt as _;
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let origin = origin();
    let mut config = with_tls(&origin, dir.path(), &authority.sign("server", &["127.0.0.1"]), None);
    if let Some(tls) = &mut config.tls {
        tls.handshake_timeout_ms = 300;
        tls.handshakes_max = 1;
    }
    let server = Server::with(config).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), silent.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is closed");
    assert_eq!(status(&authority.client(None), &server).await, Some(200));
    server.stop().await;
}

/// One client that opens more connections than there are handshakes, and says nothing, keeps nobody else out.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_holds_its_share_of_the_handshakes_and_no_more() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let origin = origin();
    let mut config = with_tls(&origin, dir.path(), &authority.sign("server", &["127.0.0.1"]), None);
    if let Some(tls) = &mut config.tls {
        // Whoever waits for one of these to end waits for longer than the test.
        tls.handshake_timeout_ms = 3_600_000;
        tls.handshakes_max = 16;
    }
    let server = Server::with(config).await;
    let from = |address: &'static str| {
        let local: std::net::SocketAddr = format!("{address}:0").parse().unwrap();
        let server = server.address;
        async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(local).unwrap();
            let mut stream = socket.connect(server).await.unwrap();
            stream.write_all(&[0x16, 0x03]).await.unwrap();
            stream
        }
    };
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(from("127.0.0.2").await);
    }
    let connections = || {
        let text = server.app.metrics.render();
        text.lines()
            .filter_map(|line| line.strip_prefix("headstart_connections ")?.parse::<usize>().ok())
            .sum::<usize>()
    };
    crate::support::until("they are here", || connections() >= 20).await;
    let other = authority.client(None);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(60), status(&other, &server));
    assert_eq!(answer.await.expect("another client gets through"), Some(200));
    drop(silent);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_certificates_are_names_in_rules() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let origin = origin();
    let server_certificate = authority.sign("server", &["127.0.0.1"]);
    let certificates = [
        clients.sign("node-1", &[]),
        clients.sign("whatever", &["node-2.cluster.test"]),
        clients.sign("someone", &[]),
        strangers.sign("node-1", &[]),
    ];
    for (wanted, wants) in [
        (
            ClientCertificates::Required,
            [None, Some(200), Some(200), Some(403), None],
        ),
        (
            ClientCertificates::Optional,
            [Some(403), Some(200), Some(200), Some(403), None],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = with_tls(&origin, dir.path(), &server_certificate, Some((&clients, wanted)));
        config.access.methods = vec![AccessMethod::Certificate];
        config.access.rules = vec![rule(&["node-1", "*.cluster.test"], &[])];
        let server = Server::with(config).await;
        let mut got = vec![status(&authority.client(None), &server).await];
        for certificate in &certificates {
            got.push(status(&authority.client(Some(certificate)), &server).await);
        }
        assert_eq!(got, wants, "{wanted:?}");
        server.stop().await;
    }
    // A method that could not work is a mistake.
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_tls(&origin, dir.path(), &server_certificate, None);
    config.access.methods = vec![AccessMethod::Certificate];
    let error = App::open(config).await.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("client_cert"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let origin = origin();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(with_tls(&origin, dir.path(), &old.sign("server", &["127.0.0.1"]), None)).await;
    let (by_old, by_new) = (old.client(None), new.client(None));
    assert_eq!(
        (status(&by_old, &server).await, status(&by_new, &server).await),
        (Some(200), None)
    );
    // A certificate without its key: the old pair stays.
    let next = new.sign("server", &["127.0.0.1"]);
    fs::write(dir.path().join("server.pem"), &next.certificate).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(status(&by_old, &server).await, Some(200));
    fs::write(dir.path().join("server.key"), &next.key).unwrap();
    until(Some(200), || status(&by_new, &server)).await;
    assert_eq!(status(&by_old, &server).await, None);
    server.stop().await;
}
