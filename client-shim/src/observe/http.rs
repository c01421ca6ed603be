//! As much HTTP as Prometheus and our own command line need: one GET a connection.
//!
//! In: connections. Out: answers with a length, then the end. Invariant: few connections at a time, each with a size and
//! a time, so that nobody can use up the shim's descriptors or memory here.
//! Not here: what is answered. A library's server has no such bounds, and would be a hundred times this.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::listen::{Listener, Stream};

/// Connections at one time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request, with the headers that a scraper sends.
const REQUEST_MAX: usize = 8 << 10;
/// For the whole exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// After `accept` failed (no descriptors left): not at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// An answer.
#[derive(Clone, Debug)]
pub struct Body {
    media_type: &'static str,
    bytes: Vec<u8>,
}

impl Body {
    /// In the text format of Prometheus.
    pub fn text(text: String) -> Self {
        Self {
            media_type: "text/plain; version=0.0.4; charset=utf-8",
            bytes: text.into_bytes(),
        }
    }

    pub fn json(value: &impl serde::Serialize) -> Self {
        Self {
            media_type: "application/json",
            // Our own types have string keys and no failing serializers.
            bytes: serde_json::to_vec(value).unwrap_or_default(),
        }
    }
}

/// Answers paths until `stop`. `answer` may block; `None` is 404.
pub async fn serve<F>(listener: Listener, stop: CancellationToken, answer: Arc<F>)
where
    F: Fn(&str) -> Option<Body> + Send + Sync + 'static,
{
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok(stream) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let _turn = turn;
            // Whoever is too slow, or hangs up, has had the chance.
            let _ = tokio::time::timeout(EXCHANGE_TIMEOUT, exchange(stream, answer)).await;
        });
    }
}

async fn exchange<F>(mut stream: Box<dyn Stream>, answer: Arc<F>) -> std::io::Result<()>
where
    F: Fn(&str) -> Option<Body> + Send + Sync + 'static,
{
    let mut request = Vec::new();
    let path = loop {
        if let Some(end) = find(&request, b"\r\n\r\n") {
            break path(&request[..end]);
        }
        let mut piece = [0; 1024];
        match stream.read(&mut piece).await? {
            n if n > 0 && request.len() + n <= REQUEST_MAX => request.extend_from_slice(&piece[..n]),
            _ => break None,
        }
    };
    let (status, body) = match path {
        None => ("400 Bad Request", None),
        Some(path) => match tokio::task::spawn_blocking(move || answer(&path)).await {
            Ok(Some(body)) => ("200 OK", Some(body)),
            Ok(None) => ("404 Not Found", None),
            Err(_) => ("500 Internal Server Error", None),
        },
    };
    let body = body.unwrap_or(Body::text(format!("{status}\n")));
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.media_type,
        body.bytes.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body.bytes).await?;
    stream.shutdown().await
}

/// The path of a GET, without its query.
fn path(head: &[u8]) -> Option<String> {
    let line = head.split(|b| *b == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_get = method == "GET" && version.starts_with("HTTP/1.") && words.next().is_none();
    let path = target.split('?').next()?;
    is_get.then(|| path.to_owned())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    async fn ask(socket: &std::path::Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        // It may hang up before it has read all.
        let _ = stream.write_all(request).await;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn one_get_a_connection_and_everything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a.sock");
        let stop = CancellationToken::new();
        let listener = Listener::bind(&format!("unix:{}", socket.display())).unwrap();
        let answer = |path: &str| (path == "/here").then(|| Body::text("yes".into()));
        let serving = tokio::spawn(serve(listener, stop.clone(), Arc::new(answer)));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            ask(&socket, b"GET /here?x HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .ends_with("\r\n\r\nyes")
        );
        assert!(
            ask(&socket, b"GET /there HTTP/1.0\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 404")
        );
        for bad in [
            &b"POST /here HTTP/1.1\r\n\r\n"[..],
            b"\xff\r\n\r\n",
            b"GET /here\r\n\r\n",
            b"\r\n\r\n",
        ] {
            assert!(ask(&socket, bad).await.starts_with("HTTP/1.1 400"), "{bad:?}");
        }
        let long = [b"GET /here HTTP/1.1\r\nA: ".to_vec(), vec![b'x'; 2 * REQUEST_MAX]].concat();
        assert!(!ask(&socket, &long).await.contains("200 OK"));
        // Silent connections hold turns, and lose them in time; here: when they end.
        let silent: Vec<_> =
            futures_util::future::join_all((0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&socket))).await;
        drop(silent);
        assert!(ask(&socket, b"GET /here HTTP/1.1\r\n\r\n").await.contains("200 OK"));
        // Another one does not take it over.
        assert!(Listener::bind(&format!("unix:{}", socket.display())).is_err());
        stop.cancel();
        serving.await.unwrap();
        assert!(!socket.exists());
    }
}
