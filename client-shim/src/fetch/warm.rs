//! One connection that is there before anybody asks for anything.
//!
//! In: the servers, and how long a connection may be left alone. Out: a connection in the pool that every request takes its own
//! from, to the first server that answers; servers that do not are asked after it. Invariant: nobody waits for it; one question
//! at a time, bounded in time and bytes, that costs a server neither a turn nor a look at anything; an answer is no praise,
//! since a server that fails at its work may still give it; without servers one line is logged, once.
//! Not here: what follows for the order of servers (`fetch/health.rs`).

use std::time::{Duration, Instant};

use headstart_layer_format::routes;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::body;
use super::error::FetchError;
use super::health::PENALTY_MAX;
use super::run::jittered;
use super::servers::{Server, Servers};

/// Our servers say three bytes; what stands in their place may say why it does not let us through.
const ANSWER_MAX: u64 = 64 << 10;

impl Servers {
    /// Keeps a connection open until `stop`, if the configuration says so. Must be called on a runtime.
    pub fn keep_warm(&self, stop: CancellationToken) {
        let Some(every) = self.config().keep_warm() else {
            return;
        };
        let servers = self.clone();
        tokio::spawn(async move { stop.run_until_cancelled(keep(&servers, every)).await });
    }
}

async fn keep(servers: &Servers, every: Duration) {
    let mut is_told = false;
    loop {
        let pause = jittered(every);
        // Who is away is looked for as often as requests would.
        let soon = pause.min(PENALTY_MAX);
        let round = round(servers, soon).await;
        if let (None, Some(error)) = (round.warm, &round.error)
            && !std::mem::replace(&mut is_told, true)
        {
            tracing::info!(%error, "no-connection-kept-warm");
        }
        sleep(if round.error.is_some() { soon } else { pause }).await;
    }
}

/// What one round found.
#[derive(Debug, Default)]
struct Round {
    /// Place of the server that has a connection now, in the order of the configuration.
    warm: Option<usize>,
    /// Of the last that did not answer.
    error: Option<FetchError>,
}

/// Asks one server after the other until there is one whom the next request would be sent to. `pause`: until the next round.
async fn round(servers: &Servers, pause: Duration) -> Round {
    let mut round = Round::default();
    let bound = servers.config().response_timeout();
    // Until the next round has come to the same server again, however long it takes with each.
    let news = bound.saturating_mul(u32::try_from(servers.all().count()).unwrap_or(u32::MAX));
    for (place, server) in servers.all().enumerate() {
        let asked = timeout(bound, ask_twice(servers, server)).await;
        match asked.unwrap_or(Err(FetchError::Deadline)) {
            Ok(()) => {
                server.health.reached();
                if server.health.penalty(Instant::now()).is_zero() {
                    round.warm = Some(place);
                    return round;
                }
            }
            Err(error) => {
                server.health.unreached(Instant::now() + pause + news);
                round.error = Some(error);
            }
        }
    }
    round
}

/// The connection may be to a process that is gone, and another have its place: a second question is by a new one.
async fn ask_twice(servers: &Servers, server: &Server) -> Result<(), FetchError> {
    match ask(servers, server).await {
        Ok(()) => Ok(()),
        Err(_) => ask(servers, server).await,
    }
}

/// Any answer will do that is the server's own and not of one who misses it: also of a server that does not know this node.
async fn ask(servers: &Servers, server: &Server) -> Result<(), FetchError> {
    let request = servers.client().get(format!("{}{}", server.base, routes::HEALTHZ));
    let sent = servers.authorized(request).send().await;
    let response = sent.map_err(|error| body::unreachable(&error))?;
    let status = response.status();
    // To its end, or the connection is not used again.
    match body::whole(response, ANSWER_MAX, servers.idle()).await {
        Err(error @ FetchError::Unreachable(_)) => Err(error),
        _ if status.is_server_error() => Err(FetchError::Unreachable(format!("it answered {}", status.as_u16()))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::FetchConfig;
    use super::*;

    /// Says `status` to each connection's requests, and counts connections.
    fn server(status: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut piece = [0; 4096];
                    // One read a request: they are small.
                    while stream.read(&mut piece).is_ok_and(|len| len > 0) {
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 3\r\n\r\nok\n");
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        (url, count)
    }

    fn servers(urls: &[&String]) -> Servers {
        let urls: Vec<String> = urls.iter().map(|url| (*url).clone()).collect();
        Servers::new(&urls, &FetchConfig::default()).unwrap()
    }

    fn first(servers: &Servers) -> String {
        servers.order()[0].base.clone()
    }

    const PAUSE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_connection_is_to_whom_the_next_request_goes() {
        let ((one, at_one), (two, at_two)) = (server("200 OK"), server("200 OK"));
        let servers = servers(&[&one, &two]);
        for _ in 0..3 {
            assert_eq!(round(&servers, PAUSE).await.warm, Some(0));
        }
        let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        assert_eq!((count(&at_one), count(&at_two)), (1, 0));
        // Requests find that it fails; that it says it is well changes nothing.
        for server in servers.all().take(1) {
            (0..6).for_each(|_| server.health.failed());
        }
        assert_eq!(first(&servers), two);
        assert_eq!(round(&servers, PAUSE).await.warm, Some(1));
        assert_eq!((count(&at_two), first(&servers)), (1, two));
    }

    #[tokio::test]
    async fn who_is_away_is_asked_after_who_answers_until_it_does() {
        let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let absent = format!("http://{absent}");
        let ((here, _), (broken, _)) = (server("200 OK"), server("502 Bad Gateway"));
        let servers = servers(&[&absent, &broken, &here]);
        assert_eq!(first(&servers), absent);
        let found = round(&servers, PAUSE).await;
        assert!(found.warm == Some(2) && found.error.is_some(), "{found:?}");
        assert_eq!(first(&servers), here);
        // Somebody listens there again.
        let address = absent.strip_prefix("http://").unwrap();
        let listener = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            let refusal = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(refusal).unwrap();
        });
        assert_eq!(round(&servers, PAUSE).await.warm, Some(0), "a refusal is an answer");
        assert_eq!(first(&servers), absent);
    }

    /// A server that was started again, behind something that ends connections late.
    #[tokio::test]
    async fn a_connection_that_is_dead_does_not_count_against_its_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
            let (mut first, _) = listener.accept().unwrap();
            assert!(first.read(&mut [0; 4096]).unwrap() > 0);
            first.write_all(answer).unwrap();
            // The next question is read, and never answered.
            assert!(first.read(&mut [0; 4096]).unwrap() > 0);
            drop(first);
            let (mut second, _) = listener.accept().unwrap();
            assert!(second.read(&mut [0; 4096]).unwrap() > 0);
            second.write_all(answer).unwrap();
        });
        let servers = servers(&[&url]);
        for _ in 0..2 {
            let found = round(&servers, PAUSE).await;
            assert!(found.warm == Some(0) && found.error.is_none(), "{found:?}");
        }
    }
}
