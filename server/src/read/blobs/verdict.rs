//! How long an answer waits for the verdict over its blob, and what of it goes out before that.
//!
//! In: a seat in a fetch, and what is wanted. Out: a place that can be streamed; or why not, while that can still be a status.
//! Invariant: of a blob that is held (its upstream is not believed: always, or since it has sent wrong bytes lately) no
//! client gets a byte before the verdict, be it of the whole or of a range; only past a disk that takes nothing does a whole
//! go out but for its end, and a range not at all. The head of such an answer waits as long as heads may, because only a
//! status sends a client to its next host, unless too many wait so already; then it goes out, and the body waits, as long as
//! the fetch goes on. Who is cut so, and asks again, is told by a status ([`Blobs::refusal`]).
//! Not here: the verdict ([`crate::read::whole`]), and which upstreams were wrong ([`crate::read::suspects`]).

use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::{Blobs, ReadError};
use crate::{
    metrics::{label::held, names::Count},
    read::{
        blob::Place,
        errand::Errand,
        fetch::Boarded,
        flight::Party,
        turns::Asker,
        wants::Wants,
        withheld::{HOLD_BACK, Withheld},
    },
    store::facts::Source,
};

/// Small blobs wait this long for their verdict before the head of the answer goes out.
const VERDICT_WAIT: Duration = Duration::from_secs(10);

/// How a blob that is being fetched as a whole is waited for before it is given out.
#[derive(Clone, Copy, Debug)]
pub(in crate::read) struct Await {
    /// The verdict is waited for if the blob is no larger than this,
    size_max: u64,
    /// and no longer than this, but for its first byte; if nothing is said, [`VERDICT_WAIT`] from its size on.
    until: Option<Instant>,
    /// It is for a client, and its answer must have a head by then.
    head_by: Option<Instant>,
    withheld: Withheld,
}

impl Await {
    /// Nothing of a smaller one would go out before the verdict: a status says more than an answer that breaks off.
    pub const TO_STREAM: Self = Self {
        size_max: HOLD_BACK,
        until: None,
        head_by: None,
        withheld: Withheld::End,
    };

    /// One that is no larger is waited for until then.
    pub const fn up_to(size_max: u64, until: Instant) -> Self {
        Self {
            size_max,
            until: Some(until),
            ..Self::TO_STREAM
        }
    }

    /// To be streamed to a client.
    pub const fn to_answer(head_by: Instant) -> Self {
        Self {
            head_by: Some(head_by),
            ..Self::TO_STREAM
        }
    }

    pub const fn is_for_client(self) -> bool {
        self.head_by.is_some()
    }

    /// Nothing of what was wrong a moment ago goes out before the verdict, for as long as that can be waited for: who was cut
    /// once asks again at once, and only a status sends it to its next host.
    const fn of_a_liar(self) -> Self {
        Self {
            size_max: u64::MAX,
            ..self
        }
    }

    /// And nothing of what is held goes out before it, however long that takes.
    const fn held(self, head_by: Instant) -> Self {
        Self {
            until: Some(head_by),
            withheld: Withheld::All,
            ..self.of_a_liar()
        }
    }
}

impl Blobs {
    /// What is fetched for who wants this, and how the verdict is waited for.
    pub(super) fn judged<'w>(
        &self,
        errand: &Errand,
        source: &Source,
        wants: &'w Wants,
        verdict: Await,
    ) -> (&'w Wants, Await) {
        // Parts of what is wrong as a whole, or may be, are not given out one by one: they wait for the verdict.
        match verdict.head_by {
            Some(by) if errand.is_held() => (&Wants::Whole, verdict.held(by)),
            _ if self.has_lied(errand, source) => (&Wants::Whole, verdict.of_a_liar()),
            _ => (wants, verdict),
        }
    }

    /// Sees to it that what is wanted comes. An answer that can only break off is an error instead.
    pub(super) async fn settle(
        &self,
        seat: Boarded,
        party: Party,
        wants: &Wants,
        verdict: Await,
    ) -> Result<Place, ReadError> {
        let fetch = seat.fetch();
        let size = fetch.flight.size();
        if !wants.covers(size) {
            // Until the first byte is here, the upstream's "no" can still become a status.
            if let Some(first) = wants.first(size) {
                fetch.readable(&first, Withheld::Nothing).await?;
            }
            let withheld = Withheld::Nothing;
            return Ok(Place::Flight { seat, withheld });
        }
        if !fetch.flight.is_whole() {
            let permit = self.yard().whole(Asker::current()).await?;
            fetch.promote(None, permit);
        }
        // A longer wait would cost the client's patience.
        if size <= verdict.size_max {
            // Who sends nothing at all is silent, and not slow.
            if verdict.until.is_some() {
                fetch.flight.begun().await;
            }
            let mut until = verdict.until.unwrap_or_else(|| Instant::now() + VERDICT_WAIT);
            let is_held = verdict.withheld == Withheld::All;
            // Who waits with a head takes the place of a request: beyond these, the body waits alone.
            let place = is_held.then(|| self.0.heads.try_acquire());
            if let Some(Err(_)) = place {
                until = Instant::now();
            }
            let end = size..size;
            let told = match timeout_at(until.into(), fetch.readable(&end, Withheld::End)).await {
                Ok(told) => Some(told.map(drop)),
                Err(_) if is_held => fetch.flight.keep_waiting(party),
                Err(_) => None,
            };
            // A disk that failed is no verdict: what follows is another answer, past it.
            if is_held && !matches!(told, Some(Err(ReadError::Disk(_)))) {
                let outcome = match &told {
                    Some(Ok(())) => held::RIGHT,
                    Some(Err(_)) => held::REFUSED,
                    None => held::LATE,
                };
                let upstream = fetch.errand.upstream.name();
                self.yard().metrics.add(Count::HeldAnswers, 1, &[upstream, outcome]);
            }
            told.transpose()?;
        }
        let withheld = verdict.withheld;
        Ok(Place::Flight { seat, withheld })
    }
}
