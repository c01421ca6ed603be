//! Compression of a tar into a layer blob.
//!
//! In: tar bytes. Out: the blob and its media type. Invariant: same input, same output.
//! Not here: decompression.

use std::io::Write;

use flate2::write::GzEncoder;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    /// Several gzip members one after the other, as `pigz -i`, eStargz and nydus write.
    GzipMembers(usize),
    Zstd,
    Plain,
}

impl Compression {
    /// OCI media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip | Self::GzipMembers(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    pub fn compress(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Gzip => gzip(tar),
            Self::GzipMembers(n) => {
                let step = tar.len().div_ceil(n.max(1)).max(1);
                tar.chunks(step).flat_map(gzip).collect()
            }
            Self::Zstd => zstd::bulk::compress(tar, 3).expect("compressing memory into memory does not fail"),
            Self::Plain => tar.to_vec(),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(4));
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("compressing memory into memory does not fail")
}
