//! A whole layer's file, lent to the kernel, which reads it by itself.
//!
//! In: a layer's file. Out: a [`Loan`], if the layer is whole and there is room in what may be lent. Invariant: of what is lent no byte
//! goes while this boot lasts, unless the layer does, or the kernel never had it.
//! Not here: the mount that reads it (`presentation/erofs_tree.rs`), how much may be lent (`room.rs`).

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::layer_file::{DATA, LayerFile};
use super::marks;

/// What the kernel is given.
#[derive(Debug)]
pub struct Loan {
    pub path: PathBuf,
    /// Nobody was given it before, in this boot.
    is_first: bool,
}

impl LayerFile {
    /// The data space as a file that needs nobody to read it, if it is whole and within what may be lent. Whoever is given it
    /// may keep it: from now on no byte of it goes before the layer does, or the loan is taken back.
    pub fn whole(&self) -> Option<Loan> {
        let retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        if !self.is_settled(&retired) {
            return None;
        }
        let is_first = !self.is_lent();
        if is_first {
            let len = self.chunks().data_size();
            if !self.room.lend(len) {
                return None;
            }
            if let Err(error) = marks::lend(&self.dir) {
                tracing::warn!(dir = %self.dir.display(), %error, "cache-layer-not-lent");
                self.room.returned(len);
                return None;
            }
            self.lent.store(true, Ordering::Release);
        }
        let path = self.dir.join(DATA);
        Some(Loan { path, is_first })
    }

    /// The kernel did not take the file: what it never had can go like anything else. What was lent before stays lent.
    pub fn take_back(&self, loan: &Loan) {
        let _retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        if !loan.is_first || !self.is_lent() {
            return;
        }
        // First the mark: a successor must not count what this process does not.
        if let Err(error) = marks::forget_lent(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cache-layer-stays-lent");
            return;
        }
        self.lent.store(false, Ordering::Release);
        self.room.returned(self.chunks().data_size());
    }
}
