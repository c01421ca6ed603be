//! The body of an answer on its way to the client.
//!
//! In: the body that a handler made. Out: the same bytes, at its client's pace, with every step reported.
//! Invariant: bytes pass unchanged and unbuffered; what the request holds (its turn, its place on the connection) is
//! given back when the body is gone, however it goes.
//! Not here: when a peer is too slow ([`super::connection`]).

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tracing::Span;

use super::{
    admission::Turn,
    connection::{Progress, Running},
    exchange::{End, Exchange},
    pace::Pace,
};
use crate::telemetry;

/// See the file's comment.
pub struct Answer {
    body: Body,
    /// Bytes that are still to come, when that is known.
    left: Option<u64>,
    exchange: Exchange,
    span: Span,
    progress: Option<Arc<Progress>>,
    pace: Option<Arc<Pace>>,
    pause: Option<Pin<Box<Sleep>>>,
    _running: Option<Running>,
    _turn: Option<Turn>,
}

impl Answer {
    /// The body's extent: its length, which a stream does not know and the answer's head may say; and whether nothing of it
    /// is sent.
    pub fn new(
        body: Body,
        (length, is_bare): (Option<u64>, bool),
        mut exchange: Exchange,
        span: Span,
        mut running: Option<Running>,
        turn: Option<Turn>,
    ) -> Self {
        let left = body.size_hint().exact().or(length);
        let empty = is_bare || body.is_end_stream() || left == Some(0);
        if empty {
            exchange.end(End::Complete);
        }
        Self {
            left,
            progress: running.as_mut().filter(|_| !empty).map(Running::answer),
            pace: turn.as_ref().and_then(Turn::pace),
            pause: None,
            body,
            exchange,
            span,
            _running: running,
            _turn: turn,
        }
    }

    fn pass(&mut self, bytes: u64) {
        self.exchange.sent(bytes);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                // hyper knows the length, and does not ask for what comes after it.
                self.exchange.end(End::Complete);
            }
        }
        if let Some(progress) = &self.progress {
            progress.hand(bytes);
        }
        let now = Instant::now();
        if let Some(at) = self.pace.as_ref().and_then(|pace| pace.send(bytes, now)) {
            self.pause = Some(Box::pin(tokio::time::sleep(at - now)));
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        // Taken out for the while: a clone of it is looked up and counted.
        let span = std::mem::replace(&mut this.span, Span::none());
        let polled = span.in_scope(|| this.poll(cx));
        if let Poll::Ready(Some(Err(_))) = &polled {
            telemetry::failed(&span, "the answer broke off");
        }
        this.span = span;
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Answer {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                // It is we who make the client wait.
                self.progress.iter().for_each(|p| p.wait());
                return Poll::Pending;
            }
            self.pause = None;
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() {
            self.progress.iter().for_each(|p| p.wait());
        }
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => self.pass(frame.data_ref().map_or(0, |data| data.len() as u64)),
            Some(Err(_)) => self.exchange.end(End::Broken),
            None if self.left.is_none_or(|left| left == 0) => self.exchange.end(End::Complete),
            None => self.exchange.end(End::Broken),
        }
        Poll::Ready(frame)
    }
}
