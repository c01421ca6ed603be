//! Every metric, in tables: name, unit, labels, meaning.
//!
//! In: nothing. Out: one enum a kind, whose variants index the instruments of [`super::Metrics`].
//! Invariant: `METRICS.md` shows exactly these rows (a test writes it); names carry their unit. To add a metric, add a
//! row here and a call of `Metrics::{add, add_seconds, hold, set, time}` where it happens, and run
//! `HEADSTART_WRITE=1 cargo test -p headstart-server --lib metrics`.
//! Not here: label values ([`super::label`]).

use super::{
    label::*,
    table::{Entry, Kind, metrics},
};

metrics! {
    /// Whole numbers that only grow.
    Count: Counter;
    Requests = "headstart_requests_total", "requests", [ROUTE, STATUS], "Requests answered";
    ServedBytes = "headstart_served_bytes_total", "bytes", [ROUTE], "Body bytes handed to clients";
    Shed = "headstart_shed_total", "requests", [SHED_REASON], "Requests and connections refused for want of room";
    Cut = "headstart_connections_cut_total", "connections", [CUT_REASON], "Connections that the server closed of its own accord";
    UpstreamBytes = "headstart_upstream_bytes_total", "bytes", [UPSTREAM], "Body bytes received from upstreams";
    UpstreamRequests = "headstart_upstream_requests_total", "requests", [UPSTREAM, METHOD, STATUS], "Requests sent to upstreams";
    BreakerOpenings = "headstart_upstream_breaker_openings_total", "events", [UPSTREAM], "Times an upstream failed so often that it was left alone";
    RateHolds = "headstart_upstream_rate_holds_total", "events", [UPSTREAM], "Times an upstream's limit made us hold requests back";
    TokenExchanges = "headstart_upstream_token_exchanges_total", "exchanges", [UPSTREAM, EXCHANGE], "Exchanges for bearer tokens, by outcome";
    IngestLayers = "headstart_ingest_layers_total", "layers", [OUTCOME], "Conversions ended, by outcome";
    IngestRefusals = "headstart_ingest_refusals_total", "layers", [REFUSAL], "Layers that stay ordinary blobs, by reason";
    IngestBytes = "headstart_ingest_bytes_total", "bytes", [INGEST_KIND], "Bytes through conversions, by kind";
    Corruption = "headstart_corruption_total", "events", [DAMAGED], "Bytes that did not match their digest, treated as a miss";
    PassThrough = "headstart_pass_through_total", "answers", [], "Answers streamed from an upstream past a disk that takes no more";
    HeldAnswers = "headstart_held_answers_total", "answers", [UPSTREAM, HELD_ANSWER], "Answers of which nothing went out before their blob was verified, by what was known when the head did";
    IndexRebuilds = "headstart_index_rebuilds_total", "events", [REBUILD_REASON], "Times the index was rebuilt from packs: while a store was opened, or for what failed while it was in use";
    Evictions = "headstart_evictions_total", "objects", [EVICTED, EVICT_REASON], "Originals and converted layers that were given up";
    ScrubbedBytes = "headstart_scrubbed_bytes_total", "bytes", [SCRUBBED], "Bytes that were read again to be verified";
    ScrubDamage = "headstart_scrub_damage_total", "events", [DAMAGED], "Damage that was found so, whether repaired or not";
    Traces = "headstart_traces_total", "traces", [TAUGHT], "Traces of starts that nodes posted, by outcome";
    ProfilesGiven = "headstart_profiles_given_total", "answers", [PROFILE_ORIGIN], "Image states that were answered, by the profile in them";
    ReclaimedBytes = "headstart_reclaimed_bytes_total", "bytes", [RECLAIMED], "Bytes of the disk that became free";
}

metrics! {
    /// Seconds that add up.
    Seconds: Counter;
    Ingest = "headstart_ingest_seconds_total", "seconds", [], "Wall time spent in conversions";
    UpstreamQueue = "headstart_upstream_queue_seconds_total", "seconds", [UPSTREAM], "Time requests waited for an upstream's budget";
    Reclaim = "headstart_reclaim_seconds_total", "seconds", [], "Time spent in rounds of reclaiming";
    IngestCpu = "headstart_ingest_cpu_seconds_total", "seconds", [], "CPU time spent in conversions";
}

metrics! {
    /// How many there are at the moment: held while something lives.
    Level: Gauge;
    Connections = "headstart_connections", "connections", [], "Open connections of clients";
    InProgress = "headstart_requests_in_progress", "requests", [ROUTE], "Requests whose answer is not out yet, the body included";
    Waiting = "headstart_requests_waiting", "requests", [], "Requests that wait for their turn";
    BlobFlights = "headstart_blob_fetches_in_progress", "blobs", [], "Blobs being fetched from upstreams";
    ProfileStreams = "headstart_profile_streams", "streams", [], "Profiles that are being streamed";
    BreakersOpen = "headstart_upstream_breakers_open", "urls", [UPSTREAM], "URLs of an upstream that are left alone because they fail";
    Conversions = "headstart_conversions_in_progress", "layers", [], "Layers being converted";
}

metrics! {
    /// What something is at the moment: set when it changes.
    Gauge: Gauge;
    HeldBytes = "headstart_held_bytes", "bytes", [HELD], "Bytes of the disk that are in use";
    Profiles = "headstart_profiles", "profiles", [], "Profiles that are kept";
    ProfileBytes = "headstart_profile_bytes", "bytes", [], "Bytes of the disk that profiles are in";
    ConversionQueue = "headstart_conversion_queue_length", "layers", [], "Layers that wait for their conversion";
}

metrics! {
    /// Distributions of seconds.
    Timing: Histogram;
    RequestHead = "headstart_request_head_seconds", "seconds", [ROUTE], "From the head of a request to the head of its answer";
    RequestTotal = "headstart_request_seconds", "seconds", [ROUTE], "From the head of a request to the end of its answer";
    UpstreamHead = "headstart_upstream_head_seconds", "seconds", [UPSTREAM], "From a request to an upstream to the head of its answer";
}

metrics! {
    /// What the kernel says of the process, read when it is asked for.
    Process: Gauge;
    Memory = "process_resident_memory_bytes", "bytes", [], "Memory of the process that is in RAM";
    Files = "process_open_fds", "files", [], "Open file descriptors";
    Threads = "process_threads", "threads", [], "Threads of the process";
    Start = "process_start_time_seconds", "seconds", [], "When the process started, as Unix time";
}

metrics! {
    /// The same, of what only grows.
    ProcessTotal: Counter;
    Cpu = "process_cpu_seconds_total", "seconds", [], "CPU time of the process, all threads, user and system";
}

/// Every row of every table.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    [
        Count::TABLE,
        Seconds::TABLE,
        Level::TABLE,
        Gauge::TABLE,
        Timing::TABLE,
        Process::TABLE,
        ProcessTotal::TABLE,
    ]
    .into_iter()
    .flatten()
}
