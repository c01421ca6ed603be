//! Our own routes, as somebody.
//!
//! In: a server, and the `Authorization` value of a client or none. Out: statuses and chunks.
//! Not here: `/v2/`.

use headstart_layer_format::{
    BlobDigest, ChunkDigest,
    api::ChunksRequest,
    chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN},
    routes,
};

use super::Server;

/// Somebody's requests.
pub struct As<'s> {
    pub server: &'s Server,
    pub authorization: Option<String>,
}

impl As<'_> {
    pub async fn get(&self, url: &str) -> reqwest::Response {
        let mut request = self.server.http.get(url);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        request.send().await.unwrap()
    }

    pub async fn status(&self, url: &str) -> u16 {
        self.get(url).await.status().as_u16()
    }

    /// A path below the server's address.
    pub async fn own(&self, path: &str) -> reqwest::Response {
        self.get(&format!("http://{}{path}", self.server.address)).await
    }

    pub async fn own_status(&self, path: &str) -> u16 {
        self.own(path).await.status().as_u16()
    }

    /// Waits until the layer can be read lazily.
    pub async fn ready(&self, layer: &BlobDigest) -> headstart_layer_format::Toc {
        for _ in 0..20 {
            let answer = self.own(&format!("{}?wait_ms=5000", routes::layer_toc(layer))).await;
            match answer.status().as_u16() {
                200 => return headstart_layer_format::Toc::decode(&answer.bytes().await.unwrap()).unwrap(),
                202 | 503 => {}
                status => panic!("status {status} for a TOC"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the layer is not converted");
    }

    /// Which of the chunks come; `Err` is a status.
    pub async fn chunks(&self, chunks: Vec<ChunkDigest>, layers: Vec<BlobDigest>) -> Result<Vec<bool>, u16> {
        let body = serde_json::to_vec(&ChunksRequest { chunks, layers }).unwrap();
        let url = format!("http://{}{}", self.server.address, routes::CHUNKS);
        let mut request = self.server.http.post(url).body(body);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let answer = request.send().await.unwrap();
        if answer.status() != 200 {
            return Err(answer.status().as_u16());
        }
        let bytes = answer.bytes().await.unwrap();
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let header = ChunkHeader::decode(rest[..HEADER_LEN].try_into().unwrap()).unwrap();
            rest = &rest[HEADER_LEN..];
            found.push(match header.status {
                ChunkStatus::Found { frame_len } => {
                    rest = &rest[frame_len as usize..];
                    true
                }
                ChunkStatus::Missing => false,
            });
        }
        Ok(found)
    }
}
