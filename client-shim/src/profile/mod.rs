//! What a start of an image needs first: learnt from reads, told to the servers, and fetched before it is read.
//!
//! In: images that containerd prepares, containers that it creates, reads of the kernel. Out: chunks in layers' caches before
//! a reader comes; traces at the servers. Invariant: a hint in both directions: whatever fails here costs time, never a pull,
//! a start or a right byte; memory, bytes and time of everything are bounded.
//! Not here: requests (`fetch/profile_stream.rs`), caches (`cache`), when the snapshotter calls (`snapshotter`).
//!
//! ```text
//! first Prepare of an image -> starts.rs -> plan.rs, parts.rs -> stream.rs -> layers' caches
//!   nothing known of it        -> explore.rs <- recorder.rs <- reads of the kernel
//! Prepare of a container    -> starts.rs -> recording.rs <- recorder.rs <- reads of the kernel
//!                                           after the start: trace.rs -> a server
//! ```

pub mod config;
pub mod explore;
mod parts;
pub mod plan;
pub mod recorder;
pub mod recording;
pub mod starts;
pub mod state;
pub mod stream;
pub mod trace;
mod vicinity;

pub use config::PrefetchConfig;
pub use recorder::Recorder;
pub use starts::Starts;
pub use state::ImagePrefetch;
