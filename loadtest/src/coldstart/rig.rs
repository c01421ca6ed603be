//! Everything that a comparison runs on: the upstream with the images in it, the links, and what is started how.
//!
//! In: the demo image, or a list of images and where their layouts are. Out: a [`Rig`].
//! Invariant: an upstream of our own on loopback, below the work directory; images are copied as they are (`skopeo copy
//! --preserve-digests`), so references resolve to the digests that their makers gave them.
//! Not here: proxies and nodes (the lab makes those, fresh for each start).

use std::{path::Path, process::Command};

use super::list::{Image, ImageList};
use crate::playground::{
    PlaygroundError, Result,
    binaries::Binaries,
    command,
    lab::{Lab, Links},
    measure::Subject,
    progress::Progress,
    recipe,
    registry::Registry,
    site::Site,
    tools,
    workdir::WorkDir,
};

/// One image to start.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub subject: Subject,
    /// What every node runs before.
    pub before: Option<Subject>,
}

#[derive(Debug)]
pub struct Rig {
    pub lab: Lab,
    pub cases: Vec<Case>,
}

impl Rig {
    /// The demo image alone.
    pub async fn demo(site: &Site, links: Links, progress: &Progress) -> Result<Rig> {
        Ok(Rig::of_demo(Lab::open_linked(site, links, progress).await?))
    }

    /// The image of a lab that is there already.
    pub fn of_demo(lab: Lab) -> Rig {
        let case = Case {
            name: recipe::REPOSITORY.rsplit('/').next().unwrap_or_default().to_owned(),
            subject: Subject::demo(&lab),
            before: None,
        };
        Rig { lab, cases: vec![case] }
    }

    /// Images of `list`, all or those named. Layouts are in `images`.
    pub async fn of_list(
        site: &Site,
        list: &ImageList,
        names: &[String],
        images: &Path,
        links: Links,
        progress: &Progress,
    ) -> Result<Rig> {
        tools::require_root()?;
        tools::require(&["skopeo"])?;
        let wanted = list
            .named(names)
            .map_err(|why| PlaygroundError::unexpected("choose images", why))?;
        for image in &wanted {
            if let Some(layout) = &image.layout
                && !images.join(layout).is_dir()
            {
                let what = format!("find the image {} in {}", image.name, images.display());
                return Err(PlaygroundError::unexpected(
                    what,
                    "make it with ./scripts/bench-images.sh, or name another directory with --images",
                ));
            }
        }
        let binaries = Binaries::in_dir(&site.profile_dir)?;
        let work = WorkDir::create()?;
        let storage = work.dir("registry")?;
        let upstream = Registry::start(&work, "upstream", &storage, false).await?;
        let befores = wanted.iter().filter_map(|i| list.find(i.after.as_deref()?));
        let mut copied: Vec<&str> = Vec::new();
        for image in wanted.iter().copied().chain(befores) {
            if !copied.contains(&image.name.as_str()) {
                progress.step(format!("copying {} to the upstream registry", image.name));
                copy(image, images, &upstream, &work).await?;
                copied.push(&image.name);
            }
        }
        // Only clean pages can be dropped from the page cache.
        if let Ok(dir) = std::fs::File::open(&storage) {
            let _ = rustix::fs::syncfs(&dir);
        }
        let (repository, tag) = wanted.first().map(|i| place(i)).unwrap_or_default();
        let lab = Lab::over(upstream, (&repository, &tag), binaries, links, work).await?;
        let mut cases = Vec::new();
        for image in wanted {
            let before = match image.after.as_deref().and_then(|name| list.find(name)) {
                Some(before) => Some(subject(&lab, before).await?),
                None => None,
            };
            cases.push(Case {
                name: image.name.clone(),
                subject: subject(&lab, image).await?,
                before,
            });
        }
        Ok(Rig { lab, cases })
    }
}

pub const TAG: &str = "v1";

/// Repository and tag. A next build is in the repository of the one before it, as everywhere.
fn place(image: &Image) -> (String, String) {
    match &image.after {
        None => (format!("bench/{}", image.name), TAG.to_owned()),
        Some(before) => (format!("bench/{before}"), image.name.clone()),
    }
}

async fn subject(lab: &Lab, image: &Image) -> Result<Subject> {
    let (repository, tag) = place(image);
    Ok(Subject {
        image: lab.facts(&repository, &tag).await?,
        args: image.command.clone(),
        env: image.env.clone(),
        ready: image.ready.clone(),
        timeout: image.timeout(),
    })
}

async fn copy(image: &Image, images: &Path, upstream: &Registry, work: &WorkDir) -> Result<()> {
    let (repository, tag) = place(image);
    let mut skopeo = Command::new(tools::find("skopeo").unwrap_or_else(|| "skopeo".into()));
    skopeo
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ])
        .arg(image.source(images))
        .arg(format!("docker://{}/{repository}:{tag}", upstream.address));
    command::run(&format!("copy-{}", image.name), skopeo, work).await?;
    Ok(())
}
