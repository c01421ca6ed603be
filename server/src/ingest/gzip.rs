//! Members of a gzip stream, one behind the other.
//!
//! In: a stream that begins with a member. Out: what they hold. Invariant: each member's checksum and length were right;
//! behind the last one, bytes that begin no member are passed over, as `unpigz` does, which containerd uses where it is
//! installed (Go's own reader ends with an error there: runtimes differ on whether such a layer is one, not on what is in
//! it).
//! Not here: what may be in a member (flate2).

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

const MAGIC: [u8; 2] = [0x1f, 0x8b];

#[derive(Debug)]
pub struct GzipMembers<R> {
    /// Kept from member to member: a stream may have millions of them.
    decoder: GzDecoder<Ahead<R>>,
    is_over: bool,
}

impl<R: BufRead> GzipMembers<R> {
    pub fn new(input: R) -> Self {
        let input = Ahead {
            head: MAGIC,
            head_left: 0,
            input: Some(input),
        };
        Self {
            decoder: GzDecoder::new(input),
            is_over: false,
        }
    }

    /// Goes on with the next member, if there is one.
    fn next(&mut self) -> io::Result<bool> {
        let mut magic = Vec::with_capacity(MAGIC.len());
        let behind = self.decoder.get_mut();
        behind.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Ok(false);
        }
        let input = Ahead {
            head: MAGIC,
            head_left: MAGIC.len(),
            input: behind.input.take(),
        };
        self.decoder.reset(input);
        Ok(true)
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while !self.is_over {
            let n = self.decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            self.is_over = !self.next()?;
        }
        Ok(0)
    }
}

/// An input, with bytes put back in front of it.
#[derive(Debug)]
struct Ahead<R> {
    head: [u8; 2],
    /// Of `head`, from its end.
    head_left: usize,
    /// `None` only while it goes from one decoder state to the next.
    input: Option<R>,
}

impl<R: BufRead> Read for Ahead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Ahead<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match (&mut self.input, self.head_left) {
            (Some(input), 0) => input.fill_buf(),
            (_, left) => Ok(&self.head[self.head.len() - left..]),
        }
    }

    fn consume(&mut self, n: usize) {
        match (&mut self.input, self.head_left) {
            (Some(input), 0) => input.consume(n),
            (_, left) => self.head_left = left.saturating_sub(n),
        }
    }
}
