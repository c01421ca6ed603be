//! From an original blob to its tar.
//!
//! In: the compressed bytes as a `Read`. Out: the tar as a `Read`. Invariant: the format is told by magic, never by a media
//! type, as the server tells it; memory is the decoder's window.
//! Not here: whether the bytes are right (`refill.rs`).

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

const BUFFER: usize = 256 << 10;
/// 128 MiB: what `zstd --long` writes, and what the server converts by default.
const WINDOW_LOG_MAX: u32 = 27;

/// Anything without a known magic is taken for a tar.
pub(super) fn inflate<'a>(mut blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    blob.by_ref().take(4).read_to_end(&mut magic)?;
    let input = BufReader::with_capacity(BUFFER, Cursor::new(magic.clone()).chain(blob));
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(input))),
        // A frame, or a skippable one (which may come first).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(Box::new(decoder))
        }
        _ => Ok(Box::new(input)),
    }
}
