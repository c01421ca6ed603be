//! A second writer of the format, straight from FORMAT.md, that also writes what is not allowed.
//!
//! In: numbers and bytes. Out: encoded TOCs. Invariant: shares no code with the codec.

/// LEB128, shortest form.
pub fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// Header and sections.
pub fn toc(meta: &[u8], skeleton_size: u64, skeleton: &[u8]) -> Vec<u8> {
    framed(
        meta.len() as u64,
        &zstd::bulk::compress(meta, 1).unwrap(),
        skeleton_size,
        skeleton,
    )
}

pub fn framed(meta_size: u64, frame: &[u8], skeleton_size: u64, skeleton: &[u8]) -> Vec<u8> {
    let mut out = b"HSTOC\r\n\x01".to_vec();
    for n in [meta_size, frame.len() as u64, skeleton_size, skeleton.len() as u64] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(frame);
    out.extend_from_slice(skeleton);
    out
}

/// The parts of a metadata section, each to be replaced by a test.
#[derive(Clone, Debug)]
pub struct Meta {
    pub digest: Vec<u8>,
    pub diff_id: Vec<u8>,
    pub inodes: Vec<Vec<u8>>,
    /// Parent delta, name, inode.
    pub entries: Vec<(u64, Vec<u8>, u64)>,
    pub chunks: Vec<u8>,
    pub bodies: Vec<u8>,
    pub trailer: Vec<u8>,
}

/// tag, mode 0755, owner 0:0, mtime 0.0, no attributes.
pub const ROOT: &[u8] = &[1, 0xed, 0x03, 0, 0, 0, 0, 0, 0];
pub const FIFO: &[u8] = &[6, 0xa4, 0x03, 0, 0, 0, 0, 0];
pub const DIR: &[u8] = ROOT;

impl Meta {
    /// A root and nothing else.
    pub fn empty() -> Self {
        Self {
            digest: [vec![0], vec![0xaa; 32]].concat(),
            diff_id: vec![0xbb; 32],
            inodes: vec![ROOT.to_vec()],
            entries: Vec::new(),
            chunks: vec![0],
            bodies: vec![0],
            trailer: Vec::new(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [self.digest.as_slice(), &self.diff_id].concat();
        out.extend(varint(self.inodes.len() as u64));
        out.extend(self.inodes.iter().flatten());
        out.extend(varint(self.entries.len() as u64 + 1));
        for (delta, name, inode) in &self.entries {
            out.extend(varint(*delta));
            out.extend(varint(name.len() as u64));
            out.extend_from_slice(name);
            out.extend(varint(*inode));
        }
        out.extend_from_slice(&self.chunks);
        out.extend_from_slice(&self.bodies);
        out.extend_from_slice(&self.trailer);
        out
    }

    pub fn toc(&self) -> Vec<u8> {
        toc(&self.bytes(), 0, &zstd::bulk::compress(b"", 1).unwrap())
    }
}
