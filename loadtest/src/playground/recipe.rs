//! What the demo image is made of.
//!
//! In: nothing. Out: the containerfile, the application, the packages, and a key that changes with any of them.
//! Invariant: whoever changes the recipe gets a new image, because the cache is named by [`key`].
//! Not here: building it ([`super::image`]).

use sha2::{Digest, Sha256};

/// Debian 12's name; its python is [`PYTHON`].
pub const SUITE: &str = "bookworm";
/// Version of the interpreter in [`SUITE`], for which wheels are chosen whatever the host's own python is.
pub const PYTHON: &str = "3.11";
/// The application's dependencies, from PyPI.
pub const PYPI: &[&str] = &["flask==3.0.3", "requests==2.32.3"];
/// Repository and tag, below whatever registry name it is asked by.
pub const REPOSITORY: &str = "demo/python-app";
pub const TAG: &str = "v1";
/// What the container runs, and what it prints when it is ready to serve.
pub const COMMAND: &[&str] = &["python3", "/app/app.py"];
pub const READY: &str = "READY";

/// Imports a web framework and an HTTP client, as a service does before it listens.
pub const APP: &str = r#"import sys
import flask
import requests

app = flask.Flask("demo")


@app.get("/")
def index():
    return {"requests": requests.__version__}


with app.test_client() as client:
    answer = client.get("/").get_json()
print("READY", answer["requests"], flush=True)
sys.stdout.flush()
"#;

/// Five layers: base system, runtime, clean-up, dependencies, application. The third is there because real images have
/// such layers: it hides files of the lower ones (whiteouts), replaces a directory (opaque), and leaves a file with
/// capabilities, a hard link, links, a sparse file and odd owners and modes.
pub const CONTAINERFILE: &str = r#"FROM scratch AS base
ADD base.tar /

FROM base AS runtime
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb

FROM runtime AS tidy
RUN rm -rf /usr/share/doc/apt /usr/share/man/man8 \
 && rm -rf /usr/share/bug && mkdir /usr/share/bug && echo replaced > /usr/share/bug/note \
 && install -d -m 1770 -o 1000 -g 2000 /srv/team && echo shared > /srv/team/file \
 && ln /srv/team/file /srv/team/hard && ln -s ../team/file /srv/team/soft \
 && truncate -s 9M /srv/sparse && printf end >> /srv/sparse \
 && cp /bin/true /usr/local/bin/capable && chmod 4755 /usr/local/bin/capable \
 && python3 -c 'import os; os.setxattr("/usr/local/bin/capable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))'

FROM tidy
COPY site /usr/lib/python3/dist-packages/
COPY app.py /app/app.py
CMD ["python3", "/app/app.py"]
"#;

/// Names one recipe on one architecture.
pub fn key() -> String {
    let mut hash = Sha256::new();
    for part in [SUITE, PYTHON, APP, CONTAINERFILE, std::env::consts::ARCH]
        .iter()
        .chain(PYPI)
    {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()[..6].iter().map(|b| format!("{b:02x}")).collect()
}
