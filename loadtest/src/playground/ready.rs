//! What it means that a container is ready, and waiting for it.
//!
//! In: a line to print, an HTTP path to answer, or a port to listen on; a container, a time limit. Out: how long it took
//! from the container's creation.
//! Invariant: a container that ends before, or never becomes ready in time, is an error with what it said.
//! Not here: the network namespace that the last two are asked in ([`super::netns`]).

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{PlaygroundError, Result, container::Container, netns::NetNs};

/// How often a container that is being asked over the network is looked at for having ended.
const ENDED_POLL: Duration = Duration::from_millis(20);

/// In TOML one of `{ line = "READY" }`, `{ http = { port = 80, path = "/" } }`, `{ tcp = 6379 }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Ready {
    /// A line on standard output contains this.
    Line(String),
    /// `GET` is answered with 2xx or 3xx.
    Http(HttpProbe),
    /// The port accepts a connection.
    Tcp(u16),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    pub port: u16,
    #[serde(default = "root")]
    pub path: String,
}

fn root() -> String {
    "/".to_owned()
}

impl Ready {
    /// Whether it is asked over the network, so that the container must run in a namespace of ours.
    pub fn needs_network(&self) -> bool {
        !matches!(self, Ready::Line(_))
    }

    /// For people.
    pub fn title(&self) -> String {
        match self {
            Ready::Line(text) => format!("a line with {text}"),
            Ready::Http(probe) => format!("GET {} on port {}", probe.path, probe.port),
            Ready::Tcp(port) => format!("port {port} accepts"),
        }
    }

    fn in_time(&self, timeout: Duration) -> String {
        format!("{} within {timeout:?}", self.title())
    }

    /// Waits. `network` is the container's, if it has one of ours.
    pub async fn wait(
        &self,
        container: &mut Container<'_>,
        network: Option<&NetNs>,
        timeout: Duration,
    ) -> Result<Duration> {
        let network = match (self, network) {
            (Ready::Line(text), _) => {
                return match tokio::time::timeout(timeout, container.until_printed(text)).await {
                    Ok(result) => result,
                    Err(_) => Err(container.never_ready(&self.in_time(timeout))),
                };
            }
            (_, Some(network)) => network,
            (_, None) => return Err(PlaygroundError::unexpected("ask a container", "it has no network")),
        };
        let deadline = Instant::now() + timeout;
        let mut answer = network.ask(self, deadline)?;
        loop {
            match tokio::time::timeout(ENDED_POLL, &mut answer).await {
                Ok(Ok(Some(at))) => return Ok(at.saturating_duration_since(container.started())),
                Ok(_) => return Err(container.never_ready(&self.in_time(timeout))),
                Err(_) if container.has_ended() => {
                    let wanted = format!("{}, and it has ended", self.title());
                    return Err(container.never_ready(&wanted));
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_parse_and_half_ones_do_not() {
        #[derive(Deserialize)]
        struct One {
            ready: Ready,
        }
        let parse = |text: &str| toml::from_str::<One>(text).map(|o| o.ready);
        assert_eq!(parse("ready = { line = 'x' }").unwrap(), Ready::Line("x".to_owned()));
        assert_eq!(parse("ready = { tcp = 6379 }").unwrap(), Ready::Tcp(6379));
        let http = parse("ready = { http = { port = 80 } }").unwrap();
        assert_eq!(http.title(), "GET / on port 80");
        for wrong in [
            "{}",
            "{ tcp = 99999 }",
            "{ http = {} }",
            "{ udp = 1 }",
            "{ line = 'x', tcp = 1 }",
        ] {
            assert!(parse(&format!("ready = {wrong}")).is_err(), "{wrong}");
        }
    }
}
