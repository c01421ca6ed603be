//! Walking a tar: members for the tree, literals for the skeleton, bodies for the data space.
//!
//! In: an uncompressed tar as a `BufRead`. Out: calls of a [`Sink`]. Invariant: the literals and bodies handed out are, in
//! order, exactly the bytes read, to the end of the stream; a tar that Go's reader would not accept is refused.
//! Not here: what a name means ([`super::tree`]), bounds on sizes ([`super::inflate`], the sink).

use std::io::BufRead;

use headstart_layer_format::toc::Mtime;

use super::error::{ConvertError, Limit, Refusal, malformed};
use super::pax::Pax;
use super::sparse::{InBody, OldGnu, PaxSparseForm, SparseMap, pax_form};
use super::tar_header::{BLOCK, Block, Header, text};

/// Data of `x`, `g`, `L` and `K` members is held in memory; Go's reader takes no more than this either.
const SPECIAL_MAX: u64 = 1 << 20;

/// Takes a tar apart.
pub trait Sink {
    /// The next bytes of the tar that are not a file body.
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ConvertError>;
    /// Stretches that a sparse file may have.
    fn stretches_max(&self) -> u64;
    /// The next member. Its `body_len` bytes of body follow, then `body_end`, when that is not 0.
    fn member(&mut self, member: Member) -> Result<(), ConvertError>;
    fn body(&mut self, bytes: &[u8]) -> Result<(), ConvertError>;
    fn body_end(&mut self) -> Result<(), ConvertError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub path: Vec<u8>,
    pub kind: MemberKind,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Mtime,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes stored in the tar; not the length of a sparse file.
    pub body_len: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    File {
        sparse: Option<SparseMap>,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u64,
        minor: u64,
    },
    BlockDevice {
        major: u64,
        minor: u64,
    },
    Fifo,
    /// A global extended header: Go's reader hands it out as an entry of its own, with a name and nothing else.
    Global,
}

/// What special members said about the next real one.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_some(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }
}

/// Bodies are handed on in the pieces in which `input` has them.
pub fn scan<S: Sink>(input: impl BufRead, sink: &mut S) -> Result<(), ConvertError> {
    let mut scan = Scan { input, sink };
    let mut pending = Pending::default();
    while let Some(block) = scan.next_header()? {
        let header = Header::parse(&block)?;
        match header.typeflag {
            b'x' => pending.pax = Some(Pax::parse(&scan.special(&header)?)?),
            // Go's reader hands a global header out as an entry, and what was said before it is lost; others keep it.
            b'g' if pending.is_some() => return Err(malformed("an extended header before a global one")),
            b'g' => scan.global(header)?,
            b'L' => pending.long_name = Some(text(&scan.special(&header)?).to_vec()),
            b'K' => pending.long_link = Some(text(&scan.special(&header)?).to_vec()),
            _ => scan.member(&block, header, std::mem::take(&mut pending))?,
        }
    }
    scan.rest()
}

struct Scan<'a, R, S> {
    input: R,
    sink: &'a mut S,
}

impl<R: BufRead, S: Sink> Scan<'_, R, S> {
    /// A block of the tar that is not body; `None` at the end of the stream.
    fn literal_block(&mut self) -> Result<Option<Block>, ConvertError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = self.input.fill_buf().map_err(ConvertError::from_io)?;
            if bytes.is_empty() {
                return match filled {
                    0 => Ok(None),
                    _ => Err(Refusal::TarTruncated.into()),
                };
            }
            let n = bytes.len().min(BLOCK - filled);
            block[filled..filled + n].copy_from_slice(&bytes[..n]);
            self.input.consume(n);
            filled += n;
        }
        self.sink.literal(&block)?;
        Ok(Some(block))
    }

    fn whole_block(&mut self) -> Result<Block, ConvertError> {
        self.literal_block()?.ok_or_else(|| Refusal::TarTruncated.into())
    }

    /// `None` behind the last member: two zero blocks, or the end of the stream.
    fn next_header(&mut self) -> Result<Option<Block>, ConvertError> {
        let zero = |b: &Block| b.iter().all(|&b| b == 0);
        match self.literal_block()? {
            Some(block) if zero(&block) => match self.literal_block()? {
                Some(second) if !zero(&second) => Err(malformed("a zero block between members")),
                _ => Ok(None),
            },
            other => Ok(other),
        }
    }

    /// The data of a special member, which stays in the skeleton.
    fn special(&mut self, header: &Header) -> Result<Vec<u8>, ConvertError> {
        if header.size > SPECIAL_MAX {
            return Err(malformed("an extended header is too long"));
        }
        let mut data = Vec::with_capacity(header.size as usize);
        while (data.len() as u64) < header.size {
            let want = (header.size as usize - data.len()).min(BLOCK);
            data.extend_from_slice(&self.whole_block()?[..want]);
        }
        Ok(data)
    }

    fn global(&mut self, header: Header) -> Result<(), ConvertError> {
        let pax = Pax::parse(&self.special(&header)?)?;
        self.sink.member(Member {
            path: pax.path.unwrap_or(header.name),
            kind: MemberKind::Global,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            xattrs: Vec::new(),
            body_len: 0,
        })
    }

    fn member(&mut self, block: &Block, header: Header, pending: Pending) -> Result<(), ConvertError> {
        let pax = pending.pax.unwrap_or_default();
        let mut path = pax.path.unwrap_or(header.name);
        let mut link = pax.link.unwrap_or(header.link);
        // Go's order: GNU's long names win over PAX ones, and a sparse file's real name over both.
        path = pending.long_name.filter(|n| !n.is_empty()).unwrap_or(path);
        link = pending.long_link.filter(|n| !n.is_empty()).unwrap_or(link);
        // The size of PAX counts before anything is read: the classic place where readers part ways.
        let size = pax.size.unwrap_or(header.size);
        let (mut kind, mut body_len) = (None, 0);
        match header.typeflag {
            b'S' if header.is_gnu => {
                let map = self.old_gnu_map(block, size)?;
                (kind, body_len) = (Some(MemberKind::File { sparse: Some(map) }), size);
            }
            b'0' | 0 => {
                if header.typeflag == 0 && path.ends_with(b"/") {
                    kind = Some(MemberKind::Directory);
                } else {
                    let (sparse, stored) = self.pax_map(&pax.sparse, size)?;
                    // The name in sparse records counts only if they describe a sparse file.
                    if let (Some(name), Some(_)) = (&pax.sparse.name, &sparse) {
                        path.clone_from(name);
                    }
                    (kind, body_len) = (Some(MemberKind::File { sparse }), stored);
                }
            }
            b'1' => kind = Some(MemberKind::HardLink { target: link }),
            b'2' => kind = Some(MemberKind::Symlink { target: link }),
            b'3' | b'4' => {
                let (major, minor) = (header.dev_major, header.dev_minor);
                kind = Some(match header.typeflag {
                    b'3' => MemberKind::CharDevice { major, minor },
                    _ => MemberKind::BlockDevice { major, minor },
                });
            }
            b'5' => kind = Some(MemberKind::Directory),
            b'6' => kind = Some(MemberKind::Fifo),
            _ => {}
        }
        let kind = kind.ok_or(Refusal::EntryType(char::from(header.typeflag)))?;
        if !matches!(kind, MemberKind::File { .. }) && pax_form(&pax.sparse)? != PaxSparseForm::NotSparse {
            return Err(malformed("sparse records of what is not a file"));
        }
        self.sink.member(Member {
            path,
            kind,
            mode: header.mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            mtime: pax.mtime.unwrap_or(Mtime {
                secs: header.mtime_secs,
                nanos: 0,
            }),
            xattrs: pax.xattrs,
            body_len,
        })?;
        self.body(body_len)?;
        // A sparse map in front is whole blocks, so the padding is the body's own.
        self.padding(body_len)
    }

    fn old_gnu_map(&mut self, block: &Block, stored: u64) -> Result<SparseMap, ConvertError> {
        let mut map = OldGnu::default();
        let (size, mut more) = map.header(block)?;
        while more {
            let next = self.whole_block()?;
            more = map.extension(&next)?;
            let (what, max) = ("stretches of a sparse file", self.sink.stretches_max());
            if map.stretches.len() as u64 > max {
                return Err(Refusal::OverBudget {
                    limit: Limit::Memory,
                    what,
                    max,
                }
                .into());
            }
        }
        SparseMap::new(size, map.stretches, stored)
    }

    /// The map of a PAX sparse file, if it is one, and the length of the body that follows.
    fn pax_map(&mut self, pax: &super::pax::PaxSparse, size: u64) -> Result<(Option<SparseMap>, u64), ConvertError> {
        let real_size = || {
            let size = pax.size.or(pax.real_size);
            size.ok_or_else(|| malformed("a sparse file without a size"))
        };
        match pax_form(pax)? {
            PaxSparseForm::NotSparse => Ok((None, size)),
            PaxSparseForm::Records(stretches) => Ok((Some(SparseMap::new(real_size()?, stretches, size)?), size)),
            PaxSparseForm::InBody => {
                let mut map = InBody::default();
                let mut stored = size;
                loop {
                    stored = stored
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| malformed("a sparse map is longer than its file"))?;
                    let block = self.whole_block()?;
                    if map.block(&block)? {
                        break;
                    }
                }
                Ok((Some(SparseMap::new(real_size()?, map.stretches()?, stored)?), stored))
            }
        }
    }

    fn body(&mut self, len: u64) -> Result<(), ConvertError> {
        let mut left = len;
        while left > 0 {
            let bytes = self.input.fill_buf().map_err(ConvertError::from_io)?;
            if bytes.is_empty() {
                return Err(Refusal::TarTruncated.into());
            }
            let n = (bytes.len() as u64).min(left) as usize;
            self.sink.body(&bytes[..n])?;
            self.input.consume(n);
            left -= n as u64;
        }
        if len > 0 { self.sink.body_end() } else { Ok(()) }
    }

    /// Readers do not miss the padding of the last member when the tar ends there.
    fn padding(&mut self, len: u64) -> Result<(), ConvertError> {
        let mut pad = (len.next_multiple_of(BLOCK as u64) - len) as usize;
        while pad > 0 {
            let bytes = self.input.fill_buf().map_err(ConvertError::from_io)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let n = bytes.len().min(pad);
            self.sink.literal(&bytes[..n])?;
            self.input.consume(n);
            pad -= n;
        }
        Ok(())
    }

    /// Whatever follows the end marks belongs to the tar as well: the DiffID covers it.
    fn rest(&mut self) -> Result<(), ConvertError> {
        loop {
            let bytes = self.input.fill_buf().map_err(ConvertError::from_io)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let n = bytes.len();
            self.sink.literal(bytes)?;
            self.input.consume(n);
        }
    }
}
