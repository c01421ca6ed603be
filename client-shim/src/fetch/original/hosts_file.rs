//! containerd's `hosts.toml`: which hosts speak for a registry.
//!
//! In: containerd's `config_path` directory and a registry's name. Out: [`Host`]s in the order containerd would ask them,
//! the registry itself last. Invariant: keys and defaults mean what they mean to containerd; a file that cannot be read
//! leaves the registry itself, which is also what no file means.
//! Not here: asking them (`registry.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

/// A hosts file has some hundred bytes a host.
const FILE_SIZE_MAX: u64 = 1 << 20;
/// Hosts of one registry that are asked.
const HOSTS_MAX: usize = 16;
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// One host and how to speak to it.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Ends in `/v2` unless the file says otherwise; no slash behind.
    pub(super) base: Url,
    pub(super) ca_files: Vec<PathBuf>,
    /// Certificate and key, which may be one file.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    pub(super) skip_verify: bool,
    pub(super) headers: HeaderMap,
}

#[derive(Deserialize, Default)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<HostTable>>,
    #[serde(flatten)]
    own: HostTable,
}

/// Keys we do not know are containerd's business.
#[derive(Clone, Deserialize, Default)]
#[serde(default)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    skip_verify: Option<bool>,
    header: BTreeMap<String, OneOrMany>,
    override_path: bool,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// The hosts of `registry`.
pub(super) fn hosts(dir: &Path, registry: &str) -> Vec<Host> {
    let found = candidates(dir, registry).find_map(|dir| match read(&dir.join("hosts.toml")) {
        Ok(text) => Some((dir, text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "hosts-file-unreadable");
            None
        }
    });
    let parsed = found.and_then(|(dir, text)| match toml::from_str::<HostsFile>(&text) {
        Ok(file) => Some((dir, file)),
        Err(error) => {
            // Its text may have secrets in headers: only the place is told.
            let at = error.span().map(|s| s.start);
            tracing::warn!(dir = %dir.display(), ?at, "hosts-file-malformed");
            None
        }
    });
    let (dir, file) = parsed.unwrap_or_default();
    let mut tables: Vec<_> = file.host.into_iter().collect();
    // In the order of the file, which a map does not keep.
    tables.sort_by_key(|(_, table)| table.span().start);
    let tables = tables.into_iter().map(|(url, table)| (url, table.into_inner()));
    let own = (file.server.unwrap_or_else(|| default_server(registry)), file.own);
    let hosts = tables.chain([own]).filter(|(_, table)| table.may_pull());
    hosts
        .filter_map(|(url, table)| table.host(&url, &dir))
        .take(HOSTS_MAX)
        .collect()
}

/// Directories that containerd would look into.
fn candidates(dir: &Path, registry: &str) -> impl Iterator<Item = PathBuf> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port
        .into_iter()
        .chain([registry.to_owned(), "_default".to_owned()]);
    names.map(|name| dir.join(name)).collect::<Vec<_>>().into_iter()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_SIZE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Where a registry is that no file speaks of.
fn default_server(registry: &str) -> String {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    match registry {
        DOCKER_HUB => format!("https://{DOCKER_HUB_HOST}"),
        _ if matches!(host, "localhost" | "127.0.0.1" | "[::1]") => format!("http://{registry}"),
        _ => format!("https://{registry}"),
    }
}

impl HostTable {
    fn may_pull(&self) -> bool {
        self.capabilities.as_ref().is_none_or(|c| c.iter().any(|c| c == "pull"))
    }

    fn host(&self, url: &str, dir: &Path) -> Option<Host> {
        let url = match url.contains("://") {
            true => url.to_owned(),
            false => format!("https://{url}"),
        };
        let base = Url::parse(&url).ok().and_then(|mut base| {
            let path = base.path().trim_end_matches('/').to_owned();
            match self.override_path || path.ends_with("/v2") {
                true => base.set_path(&path),
                false => base.set_path(&format!("{path}/v2")),
            }
            let is_http = matches!(base.scheme(), "http" | "https") && base.host_str().is_some();
            (is_http && base.username().is_empty() && base.password().is_none()).then_some(base)
        });
        let Some(base) = base else {
            tracing::warn!(dir = %dir.display(), "hosts-file-has-a-bad-url");
            return None;
        };
        let ca_files = self.ca.iter().flat_map(OneOrMany::all).map(|f| dir.join(f)).collect();
        Some(Host {
            base,
            ca_files,
            client: self.client(dir),
            skip_verify: self.skip_verify.unwrap_or(false),
            headers: self.headers(),
        })
    }

    /// `"both.pem"`, `["cert.pem", ...]` or `[["cert.pem", "key.pem"], ...]`: the first.
    fn client(&self, dir: &Path) -> Option<(PathBuf, PathBuf)> {
        use toml::Value::{Array, String};
        let first = match self.client.as_ref()? {
            Array(pairs) => pairs.first()?,
            one => one,
        };
        match first {
            String(both) => Some((dir.join(both), dir.join(both))),
            Array(pair) => match &pair[..] {
                [String(cert)] => Some((dir.join(cert), dir.join(cert))),
                [String(cert), String(key), ..] => Some((dir.join(cert), dir.join(key))),
                _ => None,
            },
            _ => None,
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            for value in values.all() {
                if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                    // It may be a token.
                    value.set_sensitive(true);
                    headers.append(name, value);
                }
            }
        }
        headers
    }
}

impl Host {
    /// What a host that is not the registry itself is told: whose content is meant.
    pub(super) fn ns<'a>(&self, registry: &'a str) -> Option<&'a str> {
        let host = self.base.host_str().unwrap_or_default();
        let host = match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let is_itself = host == registry || (registry == DOCKER_HUB && host == DOCKER_HUB_HOST);
        (!is_itself).then_some(registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|h| h.base.as_str()).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_registry_last() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        };
        let none = hosts(dir.path(), "docker.io");
        assert_eq!(bases(&none), ["https://registry-1.docker.io/v2"]);
        assert_eq!(none[0].ns("docker.io"), None);
        write(
            "_default",
            r#"
            [host."http://zeta.test:5080"]
              capabilities = ["pull", "resolve"]
              skip_verify = true
              [host."http://zeta.test:5080".header]
                x-one = "1"
                x-many = ["2", "3"]
            [host."https://alpha.test/mirror"]
              ca = ["ca.pem", "/abs/other.pem"]
              client = [["node.pem", "node.key"]]
            [host."https://push.test"]
              capabilities = ["push"]
            [host."https://beta.test/odd"]
              override_path = true
              unknown_key = 1
            "#,
        );
        let found = hosts(dir.path(), "r.example:5000");
        assert_eq!(
            bases(&found),
            [
                "http://zeta.test:5080/v2",
                "https://alpha.test/mirror/v2",
                "https://beta.test/odd",
                "https://r.example:5000/v2"
            ]
        );
        assert_eq!(found[0].ns("r.example:5000"), Some("r.example:5000"));
        assert_eq!(found[3].ns("r.example:5000"), None);
        assert!(found[0].skip_verify && !found[1].skip_verify);
        assert_eq!(found[0].headers.get_all("x-many").iter().count(), 2);
        let default = dir.path().join("_default");
        assert_eq!(found[1].ca_files, [default.join("ca.pem"), "/abs/other.pem".into()]);
        assert_eq!(
            found[1].client,
            Some((default.join("node.pem"), default.join("node.key")))
        );

        // containerd's spelling of a port in a directory's name; the file's own server.
        write(
            "r.example_5000_",
            "server = \"http://elsewhere.test\"\ncapabilities = [\"pull\"]",
        );
        assert_eq!(
            bases(&hosts(dir.path(), "r.example:5000")),
            ["http://elsewhere.test/v2"]
        );
        // Damage is no file.
        write("r.example_5000_", "server = [");
        assert_eq!(
            bases(&hosts(dir.path(), "r.example:5000")),
            ["https://r.example:5000/v2"]
        );
    }
}
