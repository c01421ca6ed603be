//! Checkers: bytes against a digest, trees against each other, documents against code.
//!
//! In: streams, directories, oracles, TOCs. Out: nothing, or what differs and where.
//! Invariant: a checker never repairs and never stops at the first difference of a tree.
//! Not here: where the bytes come from.

mod compare;
mod document;
mod stream;
mod tree;

pub use compare::{Differences, Field, Overlook, compare_directories, compare_trees};
pub use document::assert_document;
pub use stream::{ByteChecker, CheckError, WrongDigest, check_reader};
pub use tree::{Content, FileTree, Marks, Node, NodeKind};
