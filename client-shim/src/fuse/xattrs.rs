//! Which extended attributes of a layer are shown.
//!
//! In: an inode of a TOC. Out: attributes. Invariant: both forms of a tree (`tree_file`, `erofs`) show these and no others.
//! Not here: how either keeps them.

use headstart_layer_format::toc::{Inode, Kind, Xattr};

/// Marks a directory that hides all below it in lower layers (Linux, Documentation/filesystems/overlayfs.rst).
pub(crate) const OPAQUE_NAME: &[u8] = b"trusted.overlay.opaque";
pub(crate) const OPAQUE_VALUE: &[u8] = b"y";
/// Runtimes do not unpack these (a layer could steer overlayfs with them), so they are not shown either.
const HIDDEN_PREFIX: &[u8] = b"trusted.";

/// The attributes of an inode that are shown as they are.
pub(crate) fn plain_xattrs(inode: &Inode) -> impl Iterator<Item = &Xattr> {
    inode.xattrs.iter().filter(|x| !x.name.starts_with(HIDDEN_PREFIX))
}

/// Whatever the layer has.
pub(crate) fn never_shown(name: &[u8]) -> bool {
    name.starts_with(HIDDEN_PREFIX) && name != OPAQUE_NAME
}

pub(crate) fn is_opaque(inode: &Inode) -> bool {
    matches!(inode.kind, Kind::Directory { opaque: true, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_not_refused_unseen() {
        for hidden in ["trusted.overlay.metacopy", "trusted.overlay.redirect", "trusted."] {
            assert!(never_shown(hidden.as_bytes()), "{hidden}");
        }
        for shown in ["security.capability", "user.overlay.opaque", "trusted", ""] {
            assert!(!never_shown(shown.as_bytes()), "{shown}");
        }
        assert!(!never_shown(OPAQUE_NAME));
    }
}
