//! Frames for a client, a part at a time.
//!
//! In: a place among the streams, and how a part is read. Out: the stream of an answer.
//! Invariant: a part is read when it is its client's turn; one is being sent, at most one more is read ahead, and each counts
//! until its last byte was taken. The first error is the last item, so a client never takes a gap for the end.
//! Not here: turns ([`super::streams`]), what is in a part ([`crate::read::seekable`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio_util::task::AbortOnDropHandle;

use super::streams::{Place, Step};
use crate::read::seekable::SeekError;

/// Frames, and where the next part begins.
pub type Part = Result<(Vec<Bytes>, usize), SeekError>;

type Read = AbortOnDropHandle<Result<(Vec<Bytes>, usize, Step), SeekError>>;

/// What is `whole`; `read` is told where a part begins, and may block.
pub fn parts(
    place: Arc<Place>,
    whole: Range<usize>,
    read: impl Fn(usize) -> Part + Send + Sync + 'static,
) -> impl Stream<Item = Result<Bytes, SeekError>> + Send + 'static {
    let read: Arc<dyn Fn(usize) -> Part + Send + Sync> = Arc::new(read);
    let begin = move |at: usize| -> Option<Read> {
        let (place, read) = (Arc::clone(&place), Arc::clone(&read));
        // A task, so that whoever has a turn reads at once, and gives it back, also while its client takes nothing.
        let task = async move {
            let mut step = place.step().await.ok_or(SeekError::Cancelled)?;
            // With the step: what was begun counts until it has ended, also if nobody waits for it any more.
            let part = tokio::task::spawn_blocking(move || {
                let part = read(at);
                step.has_read();
                part.map(|(frames, next)| (frames, next, step))
            });
            part.await.unwrap_or(Err(SeekError::Cancelled))
        };
        (at < whole.end).then(|| AbortOnDropHandle::new(tokio::spawn(task)))
    };
    // Nothing is read before the client asks for the first.
    let first = stream::once(async move {
        let ahead = begin(whole.start);
        stream::unfold((ahead, begin), |(ahead, begin)| async move {
            let part = ahead?.await.unwrap_or(Err(SeekError::Cancelled));
            let ahead = part.as_ref().ok().and_then(|(_, next, _)| begin(*next));
            Some((part, (ahead, begin)))
        })
    });
    first.flatten().flat_map(|part| match part {
        Ok((frames, _, step)) => {
            let frames = stream::iter(frames.into_iter().map(Ok));
            frames
                .map(move |frame| {
                    // Given back when its last frame was taken.
                    let _step = &step;
                    frame
                })
                .left_stream()
        }
        Err(error) => stream::iter([Err(error)]).right_stream(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use headstart_layer_format::ChunkDigest;

    use super::*;
    use crate::http::clients::ClientKey;
    use crate::http::streams::{Bounds, Streams};

    fn place(streams: &Streams, last: u8) -> Arc<Place> {
        Arc::new(streams.enter(ClientKey::new(IpAddr::from([10, 0, 0, last]))).unwrap())
    }

    fn streams() -> Streams {
        Streams::new(Bounds {
            streams: 1000,
            reads: 4,
            client_parts: 16,
            parts: 64,
        })
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn readers_that_take_one_frame_and_no_more_are_read_ahead_for_within_their_clients_share() {
        let (streams, reads) = (streams(), Arc::new(AtomicUsize::new(0)));
        let mut answers: Vec<_> = (0..100)
            .map(|_| {
                let reads = reads.clone();
                let read = move |at: usize| {
                    reads.fetch_add(1, Ordering::SeqCst);
                    Ok((vec![Bytes::from(vec![7; 10]); 2], at + 2))
                };
                Box::pin(parts(place(&streams, 1), 0..1000, read))
            })
            .collect();
        // Nobody asked yet.
        settle().await;
        assert_eq!(reads.load(Ordering::SeqCst), 0);
        for answer in &mut answers {
            let _ = answer.next().now_or_never();
        }
        settle().await;
        for answer in &mut answers {
            let _ = answer.next().now_or_never();
        }
        settle().await;
        assert_eq!(reads.load(Ordering::SeqCst), 16, "what one client may have unsent");
        // Another one is not kept out.
        let mut other = Box::pin(parts(place(&streams, 2), 3..4, |at| {
            Ok((vec![Bytes::from_static(b"x")], at + 1))
        }));
        let taken = tokio::time::timeout(std::time::Duration::from_secs(60), other.next()).await;
        assert_eq!(taken.unwrap().unwrap().unwrap(), "x");
        assert!(other.next().await.is_none());
        // One of the first goes away: its parts are the others'.
        drop(answers.drain(..50));
        settle().await;
        assert!(reads.load(Ordering::SeqCst) > 16);
    }

    #[tokio::test]
    async fn an_error_is_the_last_of_it() {
        let gone = |at: usize| match at {
            0 => Ok((vec![Bytes::from_static(b"x")], 1)),
            _ => Err(SeekError::Gone(ChunkDigest::of(b"y"))),
        };
        let mut answer = Box::pin(parts(place(&streams(), 1), 0..5, gone));
        assert_eq!(answer.next().await.unwrap().unwrap(), "x");
        assert!(answer.next().await.unwrap().is_err());
        assert!(answer.next().await.is_none());
    }
}
