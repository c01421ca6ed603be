//! A main thing that is polled often, and something beside it that happens seldom.
//!
//! In: two futures of one task. Out: whichever ends first.
//! Invariant: the one beside is polled when it was woken itself, and not each time the task is: a timer and two tokens that
//! are looked at with every packet of a connection cost more than the packet's way through the rest of the runtime.
//! Not here: what the two are ([`super::serve`]).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{future::Either, task::AtomicWaker};

/// Wakes the task, and says that it was for what is beside.
#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// See the file's comment.
#[derive(Debug)]
pub struct Beside<M, S> {
    main: M,
    side: S,
    bell: Arc<Bell>,
    waker: Waker,
}

impl<M, S> Beside<M, S> {
    pub fn new(main: M, side: S) -> Self {
        let bell = Arc::new(Bell {
            // The first time nobody has woken it.
            rung: AtomicBool::new(true),
            task: AtomicWaker::new(),
        });
        let waker = Waker::from(bell.clone());
        Self {
            main,
            side,
            bell,
            waker,
        }
    }
}

impl<M: Future + Unpin, S: Future + Unpin> Future for Beside<M, S> {
    type Output = Either<M::Output, S::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(ended) = Pin::new(&mut this.main).poll(cx) {
            return Poll::Ready(Either::Left(ended));
        }
        // Before the look: who rings after it wakes the task that is registered.
        this.bell.task.register(cx.waker());
        if this.bell.rung.swap(false, Ordering::AcqRel) {
            let mut beside = Context::from_waker(&this.waker);
            if let Poll::Ready(ended) = Pin::new(&mut this.side).poll(&mut beside) {
                return Poll::Ready(Either::Right(ended));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[tokio::test]
    async fn what_is_beside_is_polled_when_it_was_woken_and_ends_the_whole() {
        let (again, end) = (Notify::new(), Notify::new());
        let mut polls = 0;
        let mut main_polls = 0;
        let main = pin!(async {
            // Woken over and over; the one beside is not.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            again.notify_one();
            std::future::pending::<()>().await;
        });
        let mut main = main;
        let main = pin!(poll_fn(|cx| {
            main_polls += 1;
            main.as_mut().poll(cx)
        }));
        let mut waits = pin!(async {
            again.notified().await;
            end.notify_one();
            tokio::task::yield_now().await;
            end.notified().await;
            7
        });
        let side = pin!(poll_fn(|cx| {
            polls += 1;
            waits.as_mut().poll(cx)
        }));
        assert!(matches!(Beside::new(main, side).await, Either::Right(7)));
        assert!(main_polls > 100 && (2..=4).contains(&polls), "{main_polls} {polls}");
    }

    #[tokio::test]
    async fn another_thread_may_wake_it_at_any_moment() {
        for _ in 0..200 {
            let (sender, receiver) = oneshot::channel();
            let thread = std::thread::spawn(move || sender.send(()));
            let main = pin!(std::future::pending::<()>());
            assert!(matches!(Beside::new(main, pin!(receiver)).await, Either::Right(Ok(()))));
            thread.join().unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_main_thing_comes_first() {
        let (main, side) = (pin!(async { 1 }), pin!(async { 2 }));
        assert!(matches!(Beside::new(main, side).await, Either::Left(1)));
    }
}
