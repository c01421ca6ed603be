//! A request for a manifest.
//!
//! In: what a client asked for. Out: the same, in one piece; and who gets the same answer.
//! Invariant: what an upstream is asked, and what is remembered of its answer, depends on nothing but a [`Request`].
//! Not here: answering it ([`super`]).

use crate::{
    read::{
        accept::{Accept, Class},
        blobs::Way,
    },
    store::facts::Source,
    upstream::{Caller, Reference},
};

/// What somebody wants a manifest for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its head, or what it says: whether its repository gives blobs is asked as cheaply as can be.
    Look,
    /// To pull what it names: [`super::Manifests::ready`] is asked before it is given.
    Pull,
}

/// Who wants which manifest, what for, and what it may be.
#[derive(Clone, Debug)]
pub struct Request {
    pub purpose: Purpose,
    pub source: Source,
    pub caller: Caller,
    pub reference: Reference,
    pub accept: Accept,
}

/// Requests with the same key get the same answer, whatever their purpose: a pull that joined a look asks for the rest in
/// [`super::Manifests::ready`]; a look that joined a pull is told what the pull is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    source: Source,
    caller: Caller,
    reference: Reference,
    class: Class,
}

impl Request {
    /// How an upstream is asked about a blob: who only looks costs it no byte.
    pub(super) fn way(&self) -> Way {
        match self.purpose {
            Purpose::Look => Way::Head,
            Purpose::Pull => Way::FirstByte,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key {
            source: self.source.clone(),
            caller: self.caller.clone(),
            reference: self.reference.clone(),
            class: self.accept.class(),
        }
    }
}
