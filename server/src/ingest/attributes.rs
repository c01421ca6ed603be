//! What becomes of an entry's metadata on a file.
//!
//! In: a member, and the inode that it makes or changes. Out: the inode as `chown`, `setxattr`, `chmod` and `utimes`, in
//! this order, leave it. Invariant: an attribute that unpackers leave out is left out, and one that the kernel would
//! not take, or would take and change, makes the layer refused.
//! Not here: names and kinds ([`super::tree`]).

use headstart_layer_format::limits::{XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX};
use headstart_layer_format::toc::{Inode, Kind, Mtime, Xattr};

use super::error::{ConvertError, Limit, Refusal};
use super::pax::{XATTRS_OF_ONE_MAX, too_many_xattrs};
use super::tar_scan::Member;

const CAPABILITY: &[u8] = b"security.capability";

/// Gives `inode` the member's metadata. Extended attributes are added to those it has.
pub fn apply(inode: &mut Inode, member: &Member) -> Result<(), ConvertError> {
    (inode.uid, inode.gid) = (owner(member.uid)?, owner(member.gid)?);
    // The kernel gives every symlink 0777, and `chmod` does not follow to it.
    inode.mode = match inode.kind {
        Kind::Symlink { .. } => 0o777,
        _ => (member.mode & 0o7777) as u16,
    };
    inode.mtime = bound_time(member.mtime);
    if !matches!(inode.kind, Kind::Directory { .. }) {
        // `chown` takes the capabilities of what is not a directory; an entry that has them sets them behind it.
        inode.xattrs.retain(|x| *x.name != *CAPABILITY);
    }
    for (name, value) in &member.xattrs {
        if !is_kept(name, value, &inode.kind)? {
            continue;
        }
        let xattr = Xattr {
            name: name.as_slice().into(),
            value: value.as_slice().into(),
        };
        match inode.xattrs.binary_search_by(|x| (*x.name).cmp(name)) {
            Ok(at) => inode.xattrs[at] = xattr,
            Err(at) => inode.xattrs.insert(at, xattr),
        }
    }
    if inode.xattrs.len() > XATTRS_OF_ONE_MAX {
        return Err(too_many_xattrs());
    }
    if let Kind::Directory { implied, .. } = &mut inode.kind {
        *implied = false;
    }
    Ok(())
}

/// `chown` takes -1 for "as it is".
pub fn owner(n: u64) -> Result<u32, Refusal> {
    let id = u32::try_from(n).ok().filter(|&id| id != u32::MAX);
    id.ok_or(Refusal::Tar("an owner is too large"))
}

fn is_kept(name: &[u8], value: &[u8], kind: &Kind) -> Result<bool, Refusal> {
    let over = |what, max: usize| {
        Err(Refusal::OverBudget {
            limit: Limit::Format,
            what,
            max: max as u64,
        })
    };
    if name.is_empty() || name.len() > XATTR_NAME_LEN_MAX {
        return over("bytes in the name of an attribute", XATTR_NAME_LEN_MAX);
    }
    if value.len() > XATTR_VALUE_LEN_MAX {
        return over("bytes in an attribute", XATTR_VALUE_LEN_MAX);
    }
    let dot = name.iter().position(|&b| b == b'.');
    let (space, rest) = dot.map_or((name, &b""[..]), |at| (&name[..at], &name[at + 1..]));
    match space {
        b"user" | b"security" if dot.is_some() && rest.is_empty() => {
            Err(Refusal::Tar("an attribute without a name behind its namespace"))
        }
        // The kernel has them on files and directories alone; unpackers pass over that.
        b"user" if dot.is_some() => Ok(matches!(kind, Kind::Regular(_) | Kind::Directory { .. })),
        b"security" if name == CAPABILITY && !is_capability(value) => {
            Err(Refusal::Tar("file capabilities that the kernel does not take"))
        }
        b"security" if dot.is_some() => Ok(true),
        // A fact of the layer, which neither an unpacker nor the shim shows.
        b"trusted" if dot.is_some() => Ok(true),
        // The kernel would make of them, and of the mode, something else.
        b"system" if matches!(rest, b"posix_acl_access" | b"posix_acl_default") => {
            Err(Refusal::Tar("an access control list cannot be represented"))
        }
        // No file system has them.
        _ => Ok(false),
    }
}

/// `struct vfs_cap_data` of revision 2 or 3.
fn is_capability(value: &[u8]) -> bool {
    match value {
        [flags, 0, 0, 2, ..] => *flags <= 1 && value.len() == 20,
        [flags, 0, 0, 3, ..] => *flags <= 1 && value.len() == 24,
        _ => false,
    }
}

/// Unpackers set times before 1970, or that 63 bits of nanoseconds cannot hold, to 1970.
pub fn bound_time(t: Mtime) -> Mtime {
    let fits = t.secs >= 0 && i128::from(t.secs) * 1_000_000_000 + i128::from(t.nanos) <= i128::from(i64::MAX);
    if fits { t } else { Mtime::default() }
}
