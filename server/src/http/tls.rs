//! Connections, plain or encrypted.
//!
//! In: an accepted TCP stream. Out: a [`Connection`] and its [`Peer`], once the handshake is done, if there is one.
//! Invariant: handshakes have a time-out and a bound, and run beside accepting, never before it. Certificates are read
//! again when their files change; files that do not load change nothing.
//! Not here: accepting and limits (`serve.rs`), whose handshakes run ([`super::handshakes`]), what a name may read
//! (`access/`).

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    certificate,
    clients::ClientKey,
    handshakes::Handshakes,
    sendfile::{Socket, Windows},
};
use crate::{
    access::Peer,
    config::{ClientCertificates, TlsConfig},
    watched::{Watched, read_file},
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("use [tls]: {0}")]
pub struct TlsSetupError(String);

/// What a TCP stream becomes. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Transport(Option<Arc<Tls>>);

#[derive(Debug)]
struct Tls {
    config: Watched<ServerConfig>,
    handshakes: Handshakes,
    timeout: Duration,
}

/// A connection's bytes.
#[derive(Debug)]
pub enum Connection {
    Plain(Socket),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Plain without `config`. To be called on a Tokio runtime.
    pub fn new(config: Option<&TlsConfig>) -> Result<Self, TlsSetupError> {
        let Some(config) = config.cloned() else {
            return Ok(Self(None));
        };
        let mut files = vec![config.cert_file.clone(), config.key_file.clone()];
        files.extend(config.client_ca_file.clone());
        let (handshakes, timeout) = (
            config.handshakes_max,
            Duration::from_millis(config.handshake_timeout_ms),
        );
        if handshakes == 0 || timeout.is_zero() {
            return Err(TlsSetupError(
                "handshakes_max and handshake_timeout_ms must be at least 1".into(),
            ));
        }
        let config = Watched::start(files, move || load(&config)).map_err(TlsSetupError)?;
        Ok(Self(Some(Arc::new(Tls {
            config,
            handshakes: Handshakes::new(handshakes),
            timeout,
        }))))
    }

    /// The handshake, or nothing for a plain connection. To be awaited in the connection's own task. `client` is whose share
    /// of the handshakes it takes, none for a trusted proxy's.
    pub async fn secure(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        client: Option<ClientKey>,
    ) -> io::Result<(Connection, Peer)> {
        let Some(tls) = &self.0 else {
            return Ok((Connection::Plain(Socket::new(stream)), Peer::plain(address)));
        };
        let handshake = async {
            let _place = tls.handshakes.enter(client).await;
            TlsAcceptor::from(tls.config.get()).accept(stream).await
        };
        let stream = tokio::time::timeout(tls.timeout, handshake)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let shown = stream.get_ref().1.peer_certificates();
        let names = shown
            .and_then(|chain| chain.first())
            .map(|own| certificate::names(own).into());
        Ok((Connection::Tls(Box::new(stream)), Peer { address, names }))
    }
}

/// A TLS configuration from the files as they are now.
fn load(config: &TlsConfig) -> Result<ServerConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(&config.cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read_file(&config.key_file)?)
        .map_err(|e| format!("key_file {}: {e}", config.key_file.display()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match (config.client_cert, &config.client_ca_file) {
        (ClientCertificates::Off, _) => builder.with_no_client_auth(),
        (_, None) => return Err("client_cert needs client_ca_file".into()),
        (wanted, Some(file)) => builder.with_client_cert_verifier(verifier(provider, wanted, file)?),
    };
    // Also checks that the key is the certificate's.
    let mut tls = builder
        .with_single_cert(chain, key)
        .map_err(|e| format!("cert_file {}: {e}", config.cert_file.display()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn verifier(
    provider: Arc<CryptoProvider>,
    wanted: ClientCertificates,
    file: &Path,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("client_ca_file {}: {e}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|e| wrong(&e))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match wanted {
        ClientCertificates::Optional => builder.allow_unauthenticated(),
        ClientCertificates::Off | ClientCertificates::Required => builder,
    };
    builder.build().map_err(|e| wrong(&e))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read_file(file)?).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(format!("{} has no certificate", file.display())),
        Err(e) => Err(format!("{}: {e}", file.display())),
    }
}

impl Connection {
    /// Where bodies may put windows of files instead of copies; encryption needs the bytes themselves.
    pub fn windows(&self) -> Option<&Windows> {
        match self {
            Self::Plain(socket) => Some(socket.windows()),
            Self::Tls(_) => None,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
