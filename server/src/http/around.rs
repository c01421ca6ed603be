//! What surrounds every request: its name, its turn, its report.
//!
//! In: a request, with the connection it came by. Out: its answer, named, counted and watched to its end.
//! Invariant: a refusal for want of room says when to come back, and has the status that makes clients do the best they
//! can (see [`ApiError::busy`]). Probes and `/metrics` need no turn.
//! Not here: the single rooms ([`super::admission`], [`super::exchange`], [`super::answer`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{Method, StatusCode, Uri, Version, header};
use tracing::Instrument as _;

use super::{
    admission::{Admission, Refused, Turn},
    answer::Answer,
    clients::{ClientKey, Clients},
    connection::Connection,
    error::{ApiError, Asked},
    exchange::{Exchange, method_name},
    request_id::{REQUEST_ID, RequestId},
    v2,
};
use crate::{
    access::Peer,
    app::App,
    metrics::{
        names::{Count, Level},
        route,
    },
    telemetry,
};

/// What a client is told to wait before it comes again.
const RETRY_AFTER_SECS: u64 = 1;

/// When the head of the answer must be on its way.
#[derive(Clone, Copy, Debug)]
pub struct AnswerBy(pub Instant);

/// The rooms.
#[derive(Clone, Debug)]
pub struct Around {
    app: App,
    clients: Clients,
    admission: Admission,
}

impl Around {
    pub fn new(app: &App) -> Self {
        Self {
            app: app.clone(),
            clients: Clients::new(&app.config.http),
            admission: Admission::new(&app.config.http),
        }
    }

    async fn turn(&self, key: ClientKey) -> Result<Turn, Refused> {
        if let Some(turn) = self.admission.try_enter(key) {
            return Ok(turn);
        }
        let _held = self.app.metrics.hold(Level::Waiting, &[]);
        self.admission.wait(key).await
    }
}

/// The outermost layer.
pub async fn around(State(around): State<Around>, request: Request, next: Next) -> Response {
    around.surround(request, |request| next.run(request)).await
}

impl Around {
    /// What `answer` says to the request, with everything around it.
    pub async fn surround<F>(&self, mut request: Request, answer: impl FnOnce(Request) -> F) -> Response
    where
        F: Future<Output = Response>,
    {
        let peer = request
            .extensions()
            .get::<Peer>()
            .map_or_else(Peer::unknown, Peer::clone);
        let connection = request.extensions_mut().remove::<Arc<Connection>>();
        let running = connection.map(|c| c.ask(request.version() == Version::HTTP_2));
        let key = ClientKey::new(self.clients.address(peer.address.ip(), request.headers()));
        request.extensions_mut().insert(key);
        // Its wait for a turn counts, too.
        let patience = Duration::from_millis(self.app.config.http.answer_timeout_ms);
        request.extensions_mut().insert(AnswerBy(Instant::now() + patience));
        let id = RequestId::of(request.headers());
        let is_head = request.method() == Method::HEAD;
        let mut exchange = Exchange::new(
            self.app.clone(),
            id,
            key,
            request.method().clone(),
            request.uri().clone(),
        );
        // At the level of errors, so that a line of any level that is shown has it.
        let span = tracing::error_span!(
            "request",
            otel.kind = "server",
            request_id = %exchange.id,
            method = method_name(request.method()),
            route = exchange.route,
            client = %key,
        );
        telemetry::adopt(&span, request.headers(), &self.app.config.telemetry);
        let (mut response, mut turn) = async {
            if exchange.route == route::PROBES {
                return (answer(request).await, None);
            }
            match self.turn(key).await {
                Ok(turn) => (key.asker().asks(answer(request)).await, Some(turn)),
                Err(Refused(why)) => {
                    self.app.metrics.add(Count::Shed, 1, &[why]);
                    (refusal(exchange.route, request.uri()), None)
                }
            }
        }
        .instrument(span.clone())
        .await;
        if let Some(turn) = &mut turn {
            turn.begin_answer();
        }
        telemetry::status(&span, response.status().as_u16());
        exchange.head(response.status().as_u16());
        response.headers_mut().insert(REQUEST_ID, exchange.id.header());
        let extent = extent(is_head, &response);
        response.map(|body| Body::new(Answer::new(body, extent, exchange, span, running, turn)))
    }
}

/// How long the body is by the answer's own word, and whether nothing of it is sent.
fn extent(is_head: bool, response: &Response) -> (Option<u64>, bool) {
    let length = response.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let is_bare = is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    (length, is_bare)
}

/// The request gets no turn.
fn refusal(route: &'static str, uri: &Uri) -> Response {
    let asked = match route {
        route::BLOBS => Asked::Blob,
        _ => Asked::Repository,
    };
    let error = ApiError::busy(asked, RETRY_AFTER_SECS, "too many requests are running");
    // What answers of `/v2/` have; those of ours do not mind.
    v2::finish_for(uri, error.into_response())
}
