//! The images to start: a TOML file that anybody can write for images of their own.
//!
//! In: TOML text. Out: a checked [`ImageList`]. Invariant: an unknown key is an error, names are unique and short enough to
//! be directories, and every image says where it is, and when it is ready.
//! Not here: bringing the images to the upstream ([`super::rig`]).

use std::{collections::HashSet, path::Path, time::Duration};

use serde::Deserialize;

use crate::playground::{PlaygroundError, Result, ready::Ready};

/// More is a mistake in the file.
const IMAGES_MAX: usize = 100;
/// Names become parts of socket paths, which are short.
const NAME_LEN_MAX: usize = 24;
const TIMEOUT_MS_MAX: u64 = 3_600_000;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageList {
    pub images: Vec<Image>,
}

/// `[[images]]`
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    pub name: String,
    /// An OCI layout: a directory, relative to `--images`. Either this or `copy_from`.
    #[serde(default)]
    pub layout: Option<String>,
    /// Anything that skopeo reads, such as `docker://docker.io/library/redis:7`.
    #[serde(default)]
    pub copy_from: Option<String>,
    /// Empty: what the image says.
    #[serde(default)]
    pub command: Vec<String>,
    /// `NAME=VALUE`
    #[serde(default)]
    pub env: Vec<String>,
    pub ready: Ready,
    /// Another image of the list, that every node has run before this one.
    #[serde(default)]
    pub after: Option<String>,
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
}

fn timeout_ms() -> u64 {
    120_000
}

impl Image {
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// What skopeo copies; layouts are in `images`.
    pub fn source(&self, images: &Path) -> String {
        match (&self.layout, &self.copy_from) {
            (Some(layout), _) => format!("oci:{}", images.join(layout).display()),
            (None, from) => from.clone().unwrap_or_default(),
        }
    }
}

impl ImageList {
    pub fn read(path: &Path) -> Result<ImageList> {
        let text = std::fs::read_to_string(path).map_err(PlaygroundError::io(format!("read {}", path.display())))?;
        ImageList::parse(&text).map_err(|why| PlaygroundError::unexpected(format!("read {}", path.display()), why))
    }

    pub fn parse(text: &str) -> std::result::Result<ImageList, String> {
        let list: ImageList = toml::from_str(text).map_err(|e| e.to_string())?;
        list.check()?;
        Ok(list)
    }

    /// Those named, in the order of the list; all, if none is.
    pub fn named(&self, names: &[String]) -> std::result::Result<Vec<&Image>, String> {
        if let Some(unknown) = names.iter().find(|n| self.find(n).is_none()) {
            let all: Vec<&str> = self.images.iter().map(|i| i.name.as_str()).collect();
            return Err(format!("there is no image {unknown}; there are {}", all.join(", ")));
        }
        let is_wanted = |image: &&Image| names.is_empty() || names.contains(&image.name);
        Ok(self.images.iter().filter(is_wanted).collect())
    }

    pub fn find(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|i| i.name == name)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.images.is_empty() || self.images.len() > IMAGES_MAX {
            return Err(format!("{} images, not within 1 and {IMAGES_MAX}", self.images.len()));
        }
        let mut names = HashSet::new();
        for image in &self.images {
            let name = &image.name;
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_plain) || name.starts_with('-') {
                return Err(format!(
                    "name {name:?}: up to {NAME_LEN_MAX} small letters, digits and hyphens make one"
                ));
            }
            if !names.insert(name) {
                return Err(format!("two images are called {name}"));
            }
            if image.layout.is_some() == image.copy_from.is_some() {
                return Err(format!("{name} needs either layout or copy_from"));
            }
            if let Some(variable) = image.env.iter().find(|e| !e.contains('=')) {
                return Err(format!("{name}: env {variable:?} is not NAME=VALUE"));
            }
            if image.timeout_ms == 0 || image.timeout_ms > TIMEOUT_MS_MAX {
                return Err(format!("{name}: timeout_ms is not within 1 and {TIMEOUT_MS_MAX}"));
            }
            if let Some(after) = &image.after
                && (after == name || self.find(after).is_none_or(|i| i.after.is_some()))
            {
                return Err(format!(
                    "{name}: after {after:?} must be another image that has no after itself"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[images]]\nname = 'a'\nlayout = 'a-v1'\nready = { tcp = 1 }\n";

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(ImageList::parse(ONE).unwrap().images[0].timeout_ms, 120_000);
        for (more, said) in [
            ("cmd = ['x']", "unknown field"),
            ("copy_from = 'docker://x'", "either layout or copy_from"),
            ("env = ['X']", "NAME=VALUE"),
            ("timeout_ms = 0", "timeout_ms"),
            ("after = 'a'", "another image"),
            ("after = 'b'", "another image"),
            ("[other]", "unknown field"),
        ] {
            let error = ImageList::parse(&format!("{ONE}{more}\n")).unwrap_err();
            assert!(error.contains(said), "{more}: {error}");
        }
        assert!(
            ImageList::parse(&format!("{ONE}{ONE}"))
                .unwrap_err()
                .contains("two images")
        );
        assert!(
            ImageList::parse(&ONE.replace("'a'", "'A b'"))
                .unwrap_err()
                .contains("name")
        );
        assert!(ImageList::parse("images = []").unwrap_err().contains("0 images"));
    }

    #[test]
    fn some_of_a_list() {
        let two = format!("{ONE}{}", ONE.replace("name = 'a'", "name = 'b'\nafter = 'a'"));
        let list = ImageList::parse(&two).unwrap();
        assert_eq!(list.named(&[]).unwrap().len(), 2);
        assert_eq!(list.named(&["b".to_owned()]).unwrap()[0].name, "b");
        assert!(list.named(&["c".to_owned()]).unwrap_err().contains("there are a, b"));
        assert_eq!(
            ImageList::parse(ONE).unwrap().images[0].source(Path::new("/i")),
            "oci:/i/a-v1"
        );
    }
}
