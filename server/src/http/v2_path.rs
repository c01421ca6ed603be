//! Paths below `/v2/`.
//!
//! In: the percent-decoded rest of the path. Out: what it asks for, unparsed texts in their places.
//! Invariant: repository names contain slashes, so a path is read from its end.
//! Not here: the grammar of names and digests (`upstream/name.rs`), and methods.
//!
//! OCI distribution-spec, "Endpoints".

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum V2Path<'a> {
    Base,
    Manifest {
        name: &'a str,
        reference: &'a str,
    },
    Blob {
        name: &'a str,
        digest: &'a str,
    },
    Tags {
        name: &'a str,
    },
    Referrers {
        name: &'a str,
        digest: &'a str,
    },
    /// `_catalog`, upload sessions and whatever else.
    Other,
}

impl<'a> V2Path<'a> {
    pub fn parse(rest: &'a str) -> Self {
        let rest = rest.trim_start_matches('/');
        if rest.is_empty() {
            return Self::Base;
        }
        let Some((head, last)) = rest.rsplit_once('/') else {
            return Self::Other;
        };
        match head.rsplit_once('/') {
            Some((name, "manifests")) => Self::Manifest { name, reference: last },
            // `<name>/blobs/uploads/` begins an upload.
            Some((_, "blobs")) if last == "uploads" => Self::Other,
            Some((name, "blobs")) => Self::Blob { name, digest: last },
            Some((name, "referrers")) => Self::Referrers { name, digest: last },
            Some((name, "tags")) if last == "list" => Self::Tags { name },
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, want) in [
            ("", V2Path::Base),
            (
                "a/manifests/latest",
                V2Path::Manifest {
                    name: "a",
                    reference: "latest",
                },
            ),
            (
                "a/b/c/manifests/x:y",
                V2Path::Manifest {
                    name: "a/b/c",
                    reference: "x:y",
                },
            ),
            (
                "manifests/blobs/blobs/sha256:0",
                V2Path::Blob {
                    name: "manifests/blobs",
                    digest: "sha256:0",
                },
            ),
            ("a/tags/list", V2Path::Tags { name: "a" }),
            ("a/blobs/uploads/", V2Path::Other),
            ("a/blobs/uploads", V2Path::Other),
            ("a/blobs/uploads/id", V2Path::Other),
            ("_catalog", V2Path::Other),
            (
                "a/referrers/sha256:0",
                V2Path::Referrers {
                    name: "a",
                    digest: "sha256:0",
                },
            ),
            ("manifests/x", V2Path::Other),
        ] {
            assert_eq!(V2Path::parse(path), want, "{path}");
        }
    }
}
