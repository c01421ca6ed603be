//! The demo image: built once, kept as the storage directory of a registry.
//!
//! In: Debian and PyPI packages, from the mirrors this machine uses. Out: a directory to start a registry over.
//! Invariant: the directory appears by rename when the image is complete; a lock file lets one process build while the
//! others wait. buildah works in a storage of its own below the cache and never sees the system's images; its storage
//! driver copies (`vfs`), so that a killed build leaves no mounts.
//! Not here: what the image consists of ([`super::recipe`]).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    PlaygroundError, Result, command, debian, mounts, progress::Progress, recipe, registry::Registry, site::Site,
    tools, workdir::WorkDir,
};

/// Returns the storage directory, after building it when it is not there.
pub async fn storage(site: &Site, work: &WorkDir, progress: &Progress) -> Result<PathBuf> {
    let done = site.cache_dir.join(format!("registry-{}", recipe::key()));
    fs::create_dir_all(&site.cache_dir).map_err(PlaygroundError::io(format!("make {}", site.cache_dir.display())))?;
    let _lock = lock(&site.cache_dir.join("build.lock"), progress).await?;
    if done.is_dir() {
        return Ok(done);
    }
    tools::require(tools::BUILD)?;
    let build = Build::begin(&site.cache_dir)?;
    build.base(work, progress).await?;
    build.application(work, progress).await?;
    let storage = build.image(work, progress).await?;
    // On disk before it is measured: only clean pages can be dropped from the page cache.
    if let Ok(dir) = File::open(&storage) {
        let _ = rustix::fs::syncfs(&dir);
    }
    // An image of an older recipe is of no use any more.
    for old in fs::read_dir(&site.cache_dir).into_iter().flatten().flatten() {
        if old.file_name().to_string_lossy().starts_with("registry-") {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    fs::rename(&storage, &done).map_err(PlaygroundError::io(format!("rename to {}", done.display())))?;
    Ok(done)
}

/// Holds the lock until the file is dropped.
async fn lock(path: &Path, progress: &Progress) -> Result<File> {
    let file = File::create(path).map_err(PlaygroundError::io(format!("make {}", path.display())))?;
    let mut told = false;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(PlaygroundError::io(format!("lock {}", path.display()))(e.into())),
        }
        if !std::mem::replace(&mut told, true) {
            progress.step("waiting for another process that builds the demo image");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A build directory; goes with everything in it, mounts first.
struct Build {
    dir: PathBuf,
}

impl Build {
    fn begin(cache: &Path) -> Result<Build> {
        let dir = cache.join("build");
        // Left by a build that was killed: debootstrap mounts proc and sys in its tree.
        discard(&dir);
        fs::create_dir_all(&dir).map_err(PlaygroundError::io(format!("make {}", dir.display())))?;
        Ok(Build { dir })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(PlaygroundError::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    /// `base.tar`: a minimal Debian.
    async fn base(&self, work: &WorkDir, progress: &Progress) -> Result<()> {
        let mirror = debian::mirror()?;
        progress.step(format!("image: Debian {} (debootstrap, half a minute)", recipe::SUITE));
        let tree = self.dir.join("base");
        let mut debootstrap = Command::new(tools::find("debootstrap").unwrap_or_else(|| "debootstrap".into()));
        debootstrap
            .args(["--variant=minbase", recipe::SUITE])
            .arg(&tree)
            .arg(mirror);
        command::run("debootstrap", debootstrap, work).await?;
        for dir in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            let dir = tree.join(dir);
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(dir.join("partial")).map_err(PlaygroundError::io("empty apt's caches"))?;
        }
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-cf"])
            .arg(self.dir.join("base.tar"));
        tar.arg("-C").arg(&tree).arg(".");
        command::run("tar", tar, work).await?;
        fs::remove_dir_all(&tree).map_err(PlaygroundError::io("remove the debootstrap tree"))
    }

    /// `site` and `app.py`. Wheels are chosen for the image's python, so any python on the host will do.
    async fn application(&self, work: &WorkDir, progress: &Progress) -> Result<()> {
        progress.step(format!("image: {} from PyPI", recipe::PYPI.join(", ")));
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--root-user-action=ignore",
            "--no-cache-dir",
        ])
        .args([
            "--only-binary=:all:",
            "--implementation",
            "cp",
            "--python-version",
            recipe::PYTHON,
        ])
        .arg("--platform")
        .arg(format!("manylinux2014_{}", std::env::consts::ARCH))
        .arg("--target")
        .arg(self.dir.join("site"))
        .args(recipe::PYPI);
        command::run("pip", pip, work).await?;
        self.write("app.py", recipe::APP)?;
        Ok(())
    }

    /// Builds, and pushes into a new registry storage.
    async fn image(&self, work: &WorkDir, progress: &Progress) -> Result<PathBuf> {
        progress.step("image: layers (buildah, apt-get install python3)");
        self.write("Containerfile", recipe::CONTAINERFILE)?;
        self.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        self.write("storage.conf", "[storage]\ndriver = \"vfs\"\n")?;
        self.write("auth.json", "{}")?;
        let mut build = self.buildah("build");
        build.args([
            "--layers",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "-t",
            "demo",
            "-f",
        ]);
        build.arg(self.dir.join("Containerfile")).arg(&self.dir);
        command::run("buildah-build", build, work).await?;

        progress.step("image: push to the upstream registry");
        let storage = self.dir.join("registry");
        let mut registry = Registry::start(work, "registry-build", &storage, false).await?;
        let mut push = self.buildah("push");
        push.args(["--tls-verify=false", "demo"]);
        push.arg(format!(
            "docker://{}/{}:{}",
            registry.address,
            recipe::REPOSITORY,
            recipe::TAG
        ));
        command::run("buildah-push", push, work).await?;
        registry.process.stop();
        Ok(storage)
    }

    /// buildah with nothing of the system's: storage, policy and credentials are ours.
    fn buildah(&self, verb: &str) -> Command {
        let mut buildah = Command::new("buildah");
        buildah
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("REGISTRY_AUTH_FILE", self.dir.join("auth.json"))
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.dir.join("storage"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .arg(verb)
            .arg("--signature-policy")
            .arg(self.dir.join("policy.json"));
        buildah
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        discard(&self.dir);
    }
}

fn discard(dir: &Path) {
    if mounts::unmount_below(dir).is_empty() {
        let _ = fs::remove_dir_all(dir);
    }
}
