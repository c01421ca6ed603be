//! What a client takes: its `Accept` headers, as far as they decide what a tag may be answered with.
//!
//! In: the values of all `Accept` headers. Out: [`Accept`].
//! Invariant: clients of one class get the same answer; two classes never share a cached tag unless the class that asks
//! takes the media type. The upstream always sees the client's own headers, unchanged; before them, the names of those
//! kinds of manifests that they take by a wildcard alone. Registries compare media types as text: to `*/*`, what curl says
//! by itself, distribution denies an OCI manifest that it has, and gives one platform's manifest in place of a Docker list.
//! What one client was told so would be told to everybody of its class.
//! Not here: choosing between representations: that is the upstream's work, and most have only one. So of `q` only
//! "not at all" (`q=0`) counts.
//!
//! RFC 9110, section 12.5.1.

use std::{borrow::Cow, sync::Arc};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::document::MANIFEST_TYPES;

/// Elements looked at; real clients send some ten. What comes after them is not accepted *here*, the upstream sees it.
const ELEMENTS_MAX: usize = 64;

/// The `Accept` headers of one request.
#[derive(Clone, Debug)]
pub struct Accept {
    own: Arc<[HeaderValue]>,
    /// What it takes by a wildcard alone, of [`MANIFEST_TYPES`].
    unnamed: [bool; MANIFEST_TYPES.len()],
    class: Class,
}

/// Those who get the same answer. Small, so that caches can have it in their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Takes every kind of manifest in use, as container runtimes do (or said nothing, which means anything).
    All,
    /// Takes less: together with those who sent the very same headers, of which this is the SHA-256.
    Narrow([u8; 32]),
}

impl Accept {
    pub fn new<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let own: Arc<[HeaderValue]> = headers.into_iter().cloned().collect();
        let wants = wants(&own, MANIFEST_TYPES);
        let class = if wants.iter().all(|want| *want != Want::No) {
            Class::All
        } else {
            let mut hash = Sha256::new();
            for value in own.iter() {
                // No value contains a line feed.
                hash.update(value.as_bytes());
                hash.update(b"\n");
            }
            Class::Narrow(hash.finalize().into())
        };
        let unnamed = wants.map(|want| want == Want::Unnamed);
        Self { own, unnamed, class }
    }

    /// For the upstream.
    pub fn headers(&self) -> Cow<'_, [HeaderValue]> {
        let unnamed = MANIFEST_TYPES
            .iter()
            .zip(self.unnamed)
            .filter(|(_, is_unnamed)| *is_unnamed);
        let unnamed: Vec<_> = unnamed.map(|(kind, _)| *kind).collect();
        // Of a client that said nothing, the upstream is asked for everything in any case.
        if self.own.is_empty() || unnamed.is_empty() {
            return Cow::Borrowed(&self.own);
        }
        let names = HeaderValue::from_str(&unnamed.join(", ")).expect("media types are ASCII");
        std::iter::once(names).chain(self.own.iter().cloned()).collect()
    }

    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether the client understands an answer of this type.
    pub fn takes(&self, media_type: &str) -> bool {
        wants(&self.own, [media_type]) != [Want::No]
    }
}

/// What the headers say of a media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    No,
    /// By a wildcard, or by saying nothing at all.
    Unnamed,
    Named,
}

/// How exactly a range names a media type that is named in full.
const NAMED: u8 = 2;

fn wants<const N: usize>(headers: &[HeaderValue], media_types: [&str; N]) -> [Want; N] {
    let elements = headers
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty());
    // The most specific range that matches decides.
    let mut best: [Option<(u8, bool)>; N] = [None; N];
    let mut any = false;
    for element in elements.take(ELEMENTS_MAX) {
        any = true;
        let (range, parameters) = element.split_once(';').unwrap_or((element, ""));
        let (range, wanted) = (range.trim(), !is_zero(parameters));
        for (best, media_type) in best.iter_mut().zip(media_types) {
            let Some(precision) = precision(range, media_type) else {
                continue;
            };
            if best.is_none_or(|(known, was_wanted)| precision > known || (precision == known && !was_wanted)) {
                *best = Some((precision, wanted));
            }
        }
    }
    best.map(|best| match best {
        Some((NAMED, true)) => Want::Named,
        Some((_, true)) => Want::Unnamed,
        None if !any => Want::Unnamed,
        Some((_, false)) | None => Want::No,
    })
}

/// How exactly `range` names `media_type`; `None` if it does not.
fn precision(range: &str, media_type: &str) -> Option<u8> {
    if range == "*/*" || range == "*" {
        return Some(0);
    }
    if range.eq_ignore_ascii_case(media_type) {
        return Some(NAMED);
    }
    let wanted = range.strip_suffix("/*")?;
    let (kind, _) = media_type.split_once('/')?;
    wanted.eq_ignore_ascii_case(kind).then_some(1)
}

/// Whether the parameters say `q=0` (`0.`, `0.000`).
fn is_zero(parameters: &str) -> bool {
    parameters.split(';').any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        name.trim().eq_ignore_ascii_case("q") && value.trim().parse::<f32>().is_ok_and(|q| q <= 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

    fn accept(values: &[&str]) -> Accept {
        let values: Vec<_> = values.iter().map(|v| HeaderValue::from_str(v).unwrap()).collect();
        Accept::new(&values)
    }

    #[test]
    fn several_headers_count_as_one_list() {
        let both = accept(&["text/x", &format!("{DOCKER} , {INDEX};q=0.3")]);
        assert!(both.takes(INDEX) && both.takes(DOCKER) && both.takes("text/x") && !both.takes("text/y"));
        assert_ne!(both.class(), Class::All);
    }

    #[test]
    fn nothing_and_wildcards_take_all() {
        for all in [&[][..], &[""], &["*/*"], &["text/html, */*;q=0.1"], &["application/*"]] {
            assert_eq!(accept(all).class(), Class::All, "{all:?}");
        }
        assert!(!accept(&["text/*"]).takes(INDEX));
    }

    #[test]
    fn the_upstream_is_told_by_name_what_a_wildcard_takes() {
        let asked = |values: &[&str]| {
            let accept = accept(values);
            let asked = accept.headers();
            asked.iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let all = MANIFEST_TYPES.join(", ");
        for wild in [&["*/*"][..], &["application/*"], &["text/x", "*/*;q=0.1"], &[""]] {
            assert_eq!(asked(wild), [&[all.as_str()][..], wild].concat());
        }
        // What is named already, or not taken, is not added.
        let rest: Vec<_> = MANIFEST_TYPES.into_iter().filter(|kind| *kind != INDEX).collect();
        for own in [format!("{INDEX}, */*"), format!("{INDEX};q=0, */*")] {
            assert_eq!(asked(&[&own]), [rest.join(", "), own]);
        }
        for own in [&[][..], &[DOCKER], &[&format!("{all}, */*")], &["text/x"]] {
            assert_eq!(asked(own), own);
        }
    }

    #[test]
    fn the_most_specific_range_decides_and_zero_means_no() {
        let not_index = accept(&[&format!("*/*, {INDEX};q=0.0")]);
        assert!(!not_index.takes(INDEX) && not_index.takes(DOCKER) && not_index.class() != Class::All);
        let only_index = accept(&[&format!("*/*;q=0, {INDEX}")]);
        assert!(only_index.takes(INDEX) && !only_index.takes(DOCKER));
    }

    #[test]
    fn those_who_take_all_are_one_class() {
        let class = |values: &[&str]| accept(values).class();
        assert_eq!(class(&[&MANIFEST_TYPES.join(", "), "text/x"]), class(&[]));
        assert_ne!(class(&[DOCKER]), class(&[]));
        assert_eq!(class(&[DOCKER]), class(&[DOCKER]));
        assert_ne!(class(&[INDEX]), class(&[DOCKER]));
    }
}
