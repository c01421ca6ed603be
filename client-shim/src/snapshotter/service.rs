//! containerd's snapshots service on the wire.
//!
//! In: protobuf requests. Out: protobuf answers, or a status from [`SnapshotError`]. Invariant: nothing is decided here.
//! The `snapshotter` field and the namespace header are not looked at: a proxy plugin serves one snapshotter, and
//! containerd's metadata layer puts the namespace into the keys.
//! Not here: what the calls do ([`super::engine`]).

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span, info_span};

use super::engine::{Engine, Prepared};
use super::error::SnapshotError;
use super::lazy::LazyLayers;
use super::record::{self, Labels, Record, TimeNs};
use crate::observe::calls::{self, Call};
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest,
    StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
    ViewSnapshotRequest, ViewSnapshotResponse, snapshots_server::Snapshots,
};
use crate::telemetry;

/// Infos in one message of `List`: with labels of some 4 KiB each it stays below gRPC's 4 MiB a message.
const LIST_BATCH: usize = 100;

/// The service; cheap to clone.
#[derive(Debug)]
pub struct SnapshotService<B: LazyLayers>(Arc<Engine<B>>);

impl<B: LazyLayers> SnapshotService<B> {
    pub fn new(engine: Arc<Engine<B>>) -> Self {
        Self(engine)
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl<B: LazyLayers> SnapshotService<B> {
    async fn counted<T>(&self, call: Call, work: impl Future<Output = Answer<T>>) -> Answer<T> {
        self.0.calls().counted(call, work).await
    }

    /// The same within a span: a call that changes or mounts something.
    async fn traced<T>(&self, call: Call, span: Span, work: impl Future<Output = Answer<T>>) -> Answer<T> {
        let answer = self.counted(call, work.instrument(span.clone())).await;
        if let Err(status) = &answer
            && !calls::is_answer(status)
        {
            telemetry::failed(&span, status.message());
        }
        answer
    }
}

/// What is not known yet is recorded by whoever comes to know it.
fn span<T>(call: Call, request: &Request<T>, key: &str) -> Span {
    let span = info_span!(
        "call",
        otel.name = call.as_str(),
        otel.kind = "server",
        key,
        decision = tracing::field::Empty,
        reason = tracing::field::Empty,
        chain = tracing::field::Empty,
        manifest = tracing::field::Empty,
    );
    telemetry::adopt(&span, request.metadata().as_ref());
    span
}

#[tonic::async_trait]
impl<B: LazyLayers> Snapshots for SnapshotService<B> {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let span = span(Call::Prepare, &request, &request.get_ref().key);
        let work = async {
            let r = request.into_inner();
            let key = r.key.clone();
            match self.0.prepare(r.key, r.parent, labels(r.labels)).await? {
                Prepared::Mounts(mounts) => Ok(Response::new(PrepareSnapshotResponse { mounts })),
                // containerd's word for "look for it": it walks to the committed snapshot and adopts it.
                Prepared::Adopted => Err(SnapshotError::AlreadyExists(key).into()),
            }
        };
        self.traced(Call::Prepare, span, work).await
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let span = span(Call::View, &request, &request.get_ref().key);
        let work = async {
            let r = request.into_inner();
            let mounts = self.0.view(r.key, r.parent, labels(r.labels)).await?;
            Ok(Response::new(ViewSnapshotResponse { mounts }))
        };
        self.traced(Call::View, span, work).await
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let span = span(Call::Mounts, &request, &request.get_ref().key);
        let work = async {
            let mounts = self.0.mounts(&request.into_inner().key).await?;
            Ok(Response::new(MountsResponse { mounts }))
        };
        self.traced(Call::Mounts, span, work).await
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let span = span(Call::Commit, &request, &request.get_ref().key);
        let work = async {
            let r = request.into_inner();
            self.0.commit(r.key, r.name, labels(r.labels)).await?;
            Ok(Response::new(()))
        };
        self.traced(Call::Commit, span, work).await
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let span = span(Call::Remove, &request, &request.get_ref().key);
        let work = async {
            self.0.remove(request.into_inner().key).await?;
            Ok(Response::new(()))
        };
        self.traced(Call::Remove, span, work).await
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let work = async {
            let record = self.0.stat(&request.into_inner().key)?;
            let info = Some(info(&record));
            Ok(Response::new(StatSnapshotResponse { info }))
        };
        self.counted(Call::Stat, work).await
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let work = async {
            let r = request.into_inner();
            let wanted = r
                .info
                .ok_or_else(|| SnapshotError::Invalid("an update needs the snapshot's info".into()))?;
            let paths = r.update_mask.map(|mask| mask.paths).unwrap_or_default();
            let record = self.0.update(wanted.name, labels(wanted.labels), paths).await?;
            let info = Some(info(&record));
            Ok(Response::new(UpdateSnapshotResponse { info }))
        };
        self.counted(Call::Update, work).await
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let work = async {
            let records = self.0.list(&request.into_inner().filters)?;
            let batches = records.chunks(LIST_BATCH).map(|batch| {
                let info = batch.iter().map(|record| info(record)).collect();
                Ok(ListSnapshotsResponse { info })
            });
            Ok(Response::new(tokio_stream::iter(batches.collect::<Vec<_>>())))
        };
        self.counted(Call::List, work).await
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let work = async {
            let usage = self.0.usage(&request.into_inner().key).await?;
            Ok(Response::new(UsageResponse {
                size: signed(usage.size),
                inodes: signed(usage.inodes),
            }))
        };
        self.counted(Call::Usage, work).await
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Answer<()> {
        let span = span(Call::Cleanup, &request, "");
        let work = async {
            self.0.cleanup().await;
            Ok(Response::new(()))
        };
        self.traced(Call::Cleanup, span, work).await
    }
}

fn labels(from: HashMap<String, String>) -> Labels {
    from.into_iter().collect()
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn info(record: &Record) -> Info {
    let kind = match record.kind {
        record::Kind::View => Kind::View,
        record::Kind::Active => Kind::Active,
        record::Kind::Committed => Kind::Committed,
    };
    Info {
        name: record.name.clone(),
        parent: record.parent.clone(),
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.clone().into_iter().collect(),
    }
}

fn timestamp(time: TimeNs) -> prost_types::Timestamp {
    let (seconds, nanos) = time.parts();
    prost_types::Timestamp { seconds, nanos }
}
