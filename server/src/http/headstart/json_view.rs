//! A TOC as JSON, for people and tools.
//!
//! In: an encoded TOC, and what the client accepts. Out: the JSON, or why not.
//! Invariant: what is made is bounded, and so is what it is made of.
//! Not here: how many at once ([`super::layers`]).

use headstart_layer_format::{Toc, routes};
use http::{HeaderMap, StatusCode, header};

use crate::http::error::{ApiError, OciCode};

/// TOCs that are shown as JSON; one of a hundred thousand files has some MiB.
const JSON_TOC_SIZE_MAX: usize = 16 << 20;
/// What is made of them.
const JSON_SIZE_MAX: usize = 128 << 20;

/// JSON only when it is asked for by name and the binary form is not.
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    let accepts = |media_type: &str| {
        headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| {
                v.split(';')
                    .next()
                    .is_some_and(|t| t.trim().eq_ignore_ascii_case(media_type))
            })
    };
    accepts("application/json") && !accepts(routes::TOC_MEDIA_TYPE)
}

pub(super) fn json_view(encoded: &[u8]) -> Result<Vec<u8>, ApiError> {
    let unreadable = |e: String| {
        ApiError::new(OciCode::Unavailable, format!("show the TOC: {e}")).with_status(StatusCode::INTERNAL_SERVER_ERROR)
    };
    let too_large = || {
        let message = format!(
            "the TOC is too large to be shown as JSON; ask for {}",
            routes::TOC_MEDIA_TYPE
        );
        ApiError::refused(StatusCode::NOT_ACCEPTABLE, message)
    };
    if encoded.len() > JSON_TOC_SIZE_MAX {
        return Err(too_large());
    }
    let toc = Toc::decode(encoded).map_err(|e| unreadable(e.to_string()))?;
    let mut json = Capped {
        bytes: Vec::new(),
        left: JSON_SIZE_MAX,
    };
    match serde_json::to_writer(&mut json, &toc.view()) {
        Ok(()) => Ok(json.bytes),
        Err(e) if e.is_io() => Err(too_large()),
        Err(e) => Err(unreadable(e.to_string())),
    }
}

/// A buffer with an end.
struct Capped {
    bytes: Vec<u8>,
    left: usize,
}

impl std::io::Write for Capped {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.left = self
            .left
            .checked_sub(part.len())
            .ok_or(std::io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_view_ends_at_its_size() {
        let mut capped = Capped {
            bytes: Vec::new(),
            left: 5,
        };
        assert!(capped.write_all(b"12345").is_ok());
        assert!(serde_json::to_writer(&mut capped, &6).unwrap_err().is_io());
        assert_eq!(capped.bytes, b"12345");
        let error = json_view(&vec![0; JSON_TOC_SIZE_MAX + 1]).unwrap_err();
        assert_eq!(error.status, StatusCode::NOT_ACCEPTABLE);
    }
}
