//! Whether each configured server answers, asked of all of them at once.
//!
//! In: the servers. Out: what each says of itself. Invariant: one request each, with the deadlines of any other; a server
//! that is asked here is neither praised nor blamed for it.
//! Not here: what follows from it ([`crate::doctor`]).

use std::time::SystemTime;

use headstart_layer_format::routes;

use super::body;
use super::servers::{FetchError, Servers};

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of the server's program, if it tells.
    pub version: Option<String>,
    /// By its clock.
    pub date: Option<SystemTime>,
}

/// One server.
#[derive(Debug)]
pub struct Looked {
    pub url: String,
    pub answer: Result<Answer, FetchError>,
}

impl Servers {
    /// Asks each for its readiness; in the order of the configuration.
    pub async fn look(&self) -> Vec<Looked> {
        let asked = self.all().map(|server| async {
            let request = self.client().get(format!("{}{}", server.base, routes::READYZ));
            let request = self.authorized(request);
            let sent = tokio::time::timeout(self.config().response_timeout(), request.send()).await;
            let answer = match sent {
                Err(_) => Err(FetchError::Unreachable("it did not answer in time".into())),
                Ok(Err(error)) => Err(body::unreachable(&error)),
                Ok(Ok(response)) => {
                    let header = |name: &str| response.headers().get(name)?.to_str().ok();
                    Ok(Answer {
                        status: response.status().as_u16(),
                        version: header(routes::VERSION_HEADER).map(str::to_owned),
                        date: header("date").and_then(|d| httpdate::parse_http_date(d).ok()),
                    })
                }
            };
            Looked {
                url: server.base.clone(),
                answer,
            }
        });
        futures_util::future::join_all(asked).await
    }
}
