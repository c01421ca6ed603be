//! The server under test, as a process.
//!
//! In: its binary, a data directory, an upstream's address. Out: a running server that can be stopped, killed and
//! started again over the same directory on the same port.
//! Invariant: one [`Proxy`] keeps its address for life, so that clients configured with it find it again.
//! Not here: relays in front of and behind it ([`super::measure`]).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use headstart_layer_format::{BlobDigest, api::ImageStatus, routes};

use super::{PlaygroundError, Result, ports, process::Process, registry::answers, workdir::WorkDir};

/// Opening a store of the demo's size takes milliseconds, rebuilding its index a second; debug builds and a loaded
/// machine multiply that.
const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Proxy {
    binary: PathBuf,
    config: PathBuf,
    name: String,
    work: WorkDir,
    data_dir: PathBuf,
    address: SocketAddr,
    process: Option<Process>,
    http: reqwest::Client,
    is_encrypted: bool,
}

/// PEM files of a server that is asked over TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients have to show a certificate of this authority.
    pub client_ca: Option<PathBuf>,
}

impl Proxy {
    /// Starts it over `data_dir` (made when missing) with one upstream, which is also the default one.
    pub async fn start(work: &WorkDir, name: &str, binary: &Path, upstream: (&str, &str)) -> Result<Proxy> {
        let quoted = |s: &str| toml::Value::from(s).to_string();
        let rest = format!(
            "default_upstream = {}\n\n[[upstreams]]\nname = {}\nurl = {}\n",
            quoted(upstream.0),
            quoted(upstream.0),
            quoted(upstream.1),
        );
        Proxy::start_configured(work, name, binary, &rest).await
    }

    /// Starts it with any configuration; `rest` is what follows address and data directory.
    pub async fn start_configured(work: &WorkDir, name: &str, binary: &Path, rest: &str) -> Result<Proxy> {
        Proxy::start_whole(work, name, binary, rest, false).await
    }

    /// The same, over TLS: [`Proxy::get`] and its like do not work then.
    pub async fn start_tls(work: &WorkDir, name: &str, binary: &Path, rest: &str, tls: &TlsFiles) -> Result<Proxy> {
        let quoted = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned()).to_string();
        let (certificate, key) = (quoted(&tls.certificate), quoted(&tls.key));
        let mut rest = format!("{rest}\n[tls]\ncert_file = {certificate}\nkey_file = {key}\n");
        if let Some(ca) = &tls.client_ca {
            rest.push_str(&format!(
                "client_ca_file = {}\nclient_cert = \"required\"\n",
                quoted(ca)
            ));
        }
        Proxy::start_whole(work, name, binary, &rest, true).await
    }

    async fn start_whole(work: &WorkDir, name: &str, binary: &Path, rest: &str, is_encrypted: bool) -> Result<Proxy> {
        let data_dir = work.dir(format!("{name}.data"))?;
        let address = ports::free()?;
        let quoted = |s: &str| toml::Value::from(s).to_string();
        let config = format!(
            "listen = \"{address}\"\ndata_dir = {}\n{rest}",
            quoted(&data_dir.to_string_lossy())
        );
        let config = work.write(format!("{name}.toml"), &config)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .map_err(|e| PlaygroundError::unexpected("make an HTTP client", e))?;
        let (binary, name, work) = (binary.to_owned(), name.to_owned(), work.clone());
        let mut proxy = Proxy {
            binary,
            config,
            name,
            work,
            data_dir,
            address,
            process: None,
            http,
            is_encrypted,
        };
        proxy.restart().await?;
        Ok(proxy)
    }

    /// Starts it again, after `stop` or `kill`.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop();
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(&self.config);
        let mut process = Process::spawn(&self.name, command, &self.work, false)?;
        let (address, is_encrypted) = (self.address, self.is_encrypted);
        // It listens only when it is ready.
        let is_ready = || async move {
            match is_encrypted {
                true => tokio::net::TcpStream::connect(address).await.is_ok(),
                false => answers(address, routes::READYZ).await,
            }
        };
        process.until_ready(START_TIMEOUT, is_ready).await?;
        self.process = Some(process);
        Ok(())
    }

    /// A clean stop. Returns whether it ended by itself with success.
    pub fn stop(&mut self) -> bool {
        self.process
            .take()
            .is_some_and(|mut p| p.stop().is_some_and(|s| s.success()))
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn log(&self) -> PathBuf {
        self.work.log(&self.name)
    }

    /// CPU time it has used since it was started.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.as_ref()?.pid())).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(
            ticks * 1000 / rustix::param::clock_ticks_per_second(),
        ))
    }

    /// `GET` of any path, whatever the status; for tests and warming.
    pub async fn get(&self, path: &str, accept: &str) -> Result<(http::StatusCode, bytes::Bytes)> {
        self.get_with(path, http::header::ACCEPT, accept).await
    }

    /// `GET` of a range of any path, whatever the status.
    pub async fn get_range(&self, path: &str, range: &str) -> Result<(http::StatusCode, bytes::Bytes)> {
        self.get_with(path, http::header::RANGE, range).await
    }

    async fn get_with(
        &self,
        path: &str,
        name: http::HeaderName,
        value: &str,
    ) -> Result<(http::StatusCode, bytes::Bytes)> {
        let failed = |e: reqwest::Error| PlaygroundError::unexpected(format!("get {path} from the server"), e);
        let request = self.http.get(format!("{}{path}", self.url())).header(name, value);
        let answer = request.send().await.map_err(failed)?;
        Ok((answer.status(), answer.bytes().await.map_err(failed)?))
    }

    /// `HEAD` of any path, whatever the status.
    pub async fn head(&self, path: &str, accept: &str) -> Result<http::StatusCode> {
        let failed = |e: reqwest::Error| PlaygroundError::unexpected(format!("ask for the head of {path}"), e);
        let request = self.http.head(format!("{}{path}", self.url()));
        let answer = request.header(http::header::ACCEPT, accept).send().await;
        Ok(answer.map_err(failed)?.status())
    }

    /// What the server knows of an image; `None` when it has not seen it.
    pub async fn image(&self, manifest: &BlobDigest, wait_ms: u64) -> Result<Option<ImageStatus>> {
        let url = format!(
            "{}{}?{}={wait_ms}",
            self.url(),
            routes::image(manifest),
            routes::WAIT_MS_QUERY
        );
        let failed = |e: reqwest::Error| PlaygroundError::unexpected("ask the server for the image", e);
        let answer = self.http.get(url).send().await.map_err(failed)?;
        if answer.status() == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(
            answer
                .error_for_status()
                .map_err(failed)?
                .json()
                .await
                .map_err(failed)?,
        ))
    }

    /// `/metrics`: the sum of each counter's samples whose line contains `label`, by metric name.
    pub async fn counters(&self) -> Result<Counters> {
        let url = format!("{}{}", self.url(), routes::METRICS);
        let failed = |e: reqwest::Error| PlaygroundError::unexpected("read the server's metrics", e);
        let text = self
            .http
            .get(url)
            .send()
            .await
            .map_err(failed)?
            .text()
            .await
            .map_err(failed)?;
        Ok(Counters::parse(&text))
    }
}

/// The samples of `/metrics`, by name and labels as printed.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    pub fn parse(text: &str) -> Counters {
        let samples = text.lines().filter(|l| !l.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Counters(samples.collect())
    }

    /// The sum of every sample of `name` whose labels contain all of `labels`, each as `key="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(series, _)| {
                let (n, l) = series.split_once('{').unwrap_or((series, ""));
                n == name && labels.iter().all(|want| l.contains(want))
            })
            .map(|(_, value)| value)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_by_name_and_labels() {
        let counters = Counters::parse(
            "# HELP a b\na_total{r=\"x\",s=\"1\"} 2\na_total{r=\"x\",s=\"2\"} 3\na_total{r=\"y\"} 5\nb 7\n",
        );
        assert_eq!(counters.sum("a_total", &["r=\"x\""]), 5.0);
        assert_eq!(counters.sum("a_total", &[]), 10.0);
        assert_eq!(counters.sum("b", &[]), 7.0);
        assert_eq!(counters.sum("none", &[]), 0.0);
    }
}
