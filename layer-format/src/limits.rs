//! Every bound of the format, in one place, each with its reason.
//!
//! In: nothing. Out: constants. Invariant: a decoder checks the bound before it reserves memory.
//! Not here: the server's conversion budgets (time, ratio), which are configuration.

/// File bodies start at multiples of this in the data space: the page size every kernel maps.
pub const BODY_ALIGN: u64 = 4096;

/// Longest path component (`NAME_MAX` of Linux).
pub const NAME_LEN_MAX: usize = 255;

/// Longest path or symlink target, without a NUL (`PATH_MAX` - 1 of Linux).
pub const PATH_LEN_MAX: usize = 4095;

/// Deepest directory nesting: the most components that fit `PATH_MAX`.
pub const DEPTH_MAX: usize = 2048;

/// Longest extended attribute name (`XATTR_NAME_MAX` of Linux).
pub const XATTR_NAME_LEN_MAX: usize = 255;

/// Longest extended attribute value (`XATTR_SIZE_MAX` of Linux).
pub const XATTR_VALUE_LEN_MAX: usize = 65536;

/// All names of one inode's attributes: `listxattr(2)` returns at most this (`XATTR_LIST_MAX`). Names and values together
/// have at most this and [`XATTR_VALUE_LEN_MAX`].
pub const XATTRS_LEN_MAX: usize = 65536;

/// Directory entries in one layer. The largest public images have some 500,000; a decoded entry takes about 100 bytes.
pub const ENTRIES_MAX: u64 = 2_000_000;

/// Extents of all files in one layer: one a file, more only for sparse files.
pub const EXTENTS_MAX: u64 = 2 * ENTRIES_MAX;

/// Extended attributes of all inodes in one layer: one a file (security labels), and as many again.
pub const XATTRS_MAX: u64 = 2 * ENTRIES_MAX;

/// Bodies in one tar: a path may be written several times, so there can be more bodies than entries.
pub const BODIES_MAX: u64 = 2 * ENTRIES_MAX;

/// Bytes of all paths of one layer, written out: 250 a path at [`ENTRIES_MAX`]. Without it, deep nesting makes a small
/// TOC say gigabytes of paths, and the JSON view writes them.
pub const PATHS_LEN_MAX: u64 = 512 << 20;

/// Bytes of the data space of one layer: 1 TiB, far above any registry's blob limit.
pub const DATA_SIZE_MAX: u64 = 1 << 40;

/// Uncompressed bytes of one chunk: what a reader may have to hold and verify at once.
pub const CHUNK_SIZE_MAX: u32 = 4 << 20;

/// Compressed bytes of one chunk frame: zstd's worst case over [`CHUNK_SIZE_MAX`] is 0.4% and a header.
pub const FRAME_SIZE_MAX: u32 = CHUNK_SIZE_MAX + (CHUNK_SIZE_MAX >> 7) + 512;

/// Chunks of one layer: a full data space in chunks of 64 KiB.
pub const CHUNKS_MAX: u64 = DATA_SIZE_MAX >> 16;

/// Uncompressed bytes of a TOC's metadata section.
pub const META_SIZE_MAX: u64 = 512 << 20;

/// Uncompressed bytes of a TOC's skeleton: [`ENTRIES_MAX`] entries of 512 bytes and room for PAX records.
pub const SKELETON_SIZE_MAX: u64 = 2 << 30;

/// Bytes of an encoded TOC.
pub const TOC_SIZE_MAX: u64 = 512 << 20;

/// Digests in one `POST chunks`. With 512 KiB chunks this asks for 2 GiB.
pub const CHUNK_REQUEST_MAX: usize = 4096;

/// Layers that one `POST chunks` may name. A node asks for chunks of one layer at a time.
pub const CHUNK_LAYERS_MAX: usize = 64;

/// Chunks of one profile: some GiB, above what any start needs.
pub const PROFILE_CHUNKS_MAX: usize = 16_384;

/// Reads of one trace; a start of an image of 60,000 small files reads some hundred chunks.
pub const TRACE_READS_MAX: usize = 8_192;

/// Bytes of a trace: [`TRACE_READS_MAX`] chunks, and paths beside most of them.
pub const TRACE_SIZE_MAX: usize = 2 << 20;

/// Hex digits of a class: a SHA-256, or a part of one.
pub const CLASS_LEN_MAX: usize = 64;

/// Longest a server waits for a conversion before it answers 202, in milliseconds: below containerd's 30 s
/// response-header time-out.
pub const TOC_WAIT_MS_MAX: u64 = 25_000;

/// Layers in one image: the most that overlayfs stacks (`OVL_MAX_STACK` of Linux).
pub const LAYERS_MAX: usize = 500;

/// Manifests listed in one answer of `chains/{chain-id}`.
pub const CHAIN_IMAGES_MAX: usize = 16;
