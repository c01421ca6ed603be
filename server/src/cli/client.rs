//! HTTP over the administration socket.
//!
//! In: a path and a body. Out: the answer, or the server's own words why not.
//! Invariant: a server that is not there is told apart from one that refuses.
//! Not here: printing.

use std::{ops::ControlFlow, path::PathBuf};

use futures_util::StreamExt as _;
use serde::{Serialize, de::DeserializeOwned};

use super::CliError;
use crate::admin::api::{Failure, List};

/// Longest line of an answer: a report of a check with as many damages as are listed.
const LINE_SIZE_MAX: usize = 4 << 20;

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    path: PathBuf,
}

impl Client {
    pub fn new(path: PathBuf) -> Result<Self, CliError> {
        // No time-outs: reclaiming and warming take what they take, and Ctrl-C is at hand.
        let http = reqwest::Client::builder()
            .no_proxy()
            .unix_socket(path.clone())
            .build()?;
        Ok(Self { http, path })
    }

    pub async fn list<T: DeserializeOwned>(&self, path: &str, limit: Option<usize>) -> Result<List<T>, CliError> {
        let query = limit.map_or(String::new(), |limit| format!("?limit={limit}"));
        let request = self.http.get(url(&format!("{path}{query}")));
        let answer = self.answer(request).await?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CliError> {
        let answer = self.stream(path, body).await?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// The answer as it comes.
    pub async fn stream(&self, path: &str, body: &impl Serialize) -> Result<reqwest::Response, CliError> {
        self.answer(self.http.post(url(path)).json(body)).await
    }

    /// An answer of JSON lines, each as it comes, until `line` says that it was the last.
    pub async fn lines(
        &self,
        path: &str,
        body: &impl Serialize,
        mut line: impl FnMut(&[u8]) -> Result<ControlFlow<()>, CliError>,
    ) -> Result<(), CliError> {
        let mut body = self.stream(path, body).await?.bytes_stream();
        let mut begun = Vec::new();
        while let Some(part) = body.next().await {
            for byte in part? {
                if byte != b'\n' {
                    begun.push(byte);
                    if begun.len() > LINE_SIZE_MAX {
                        return Err(CliError::Refused("understand the server: its line does not end".into()));
                    }
                    continue;
                }
                if line(&begun)?.is_break() {
                    return Ok(());
                }
                begun.clear();
            }
        }
        Ok(())
    }

    /// The answer to a GET, as it comes.
    pub async fn read(&self, path: &str) -> Result<reqwest::Response, CliError> {
        self.answer(self.http.get(url(path))).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, CliError> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                // Its own text is about a URL that nobody typed.
                let mut why: &dyn std::error::Error = &error;
                while let Some(source) = why.source() {
                    why = source;
                }
                let (path, why) = (self.path.clone(), why.to_string());
                return Err(CliError::NoServer { path, why });
            }
            Err(error) => return Err(error.into()),
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = answer.bytes().await?;
        let why = serde_json::from_slice::<Failure>(&bytes).map(|f| f.error);
        Err(CliError::Refused(why.unwrap_or_else(|_| {
            format!("do that: {status}: {}", String::from_utf8_lossy(&bytes))
        })))
    }
}

fn url(path: &str) -> String {
    // The socket decides where it goes; HTTP wants a host all the same.
    format!("http://localhost{path}")
}
