//! Checking passwords without letting anybody keep the cores busy.
//!
//! In: a name and a password. Out: right or wrong.
//! Invariant: bcrypt, which takes its time on purpose, runs for at most [`CHECKS_MAX`] requests at once and once for the
//! same question while the answer is remembered. Answers are remembered by a keyed hash over name, password and stored
//! hash, so a changed file is asked anew, an answer is never out of date, and memory holds no password. Who is known to
//! be right needs no turn and no time again while it keeps coming, whatever flood of wrong passwords waits. A name that is
//! unknown takes as long as one that is known.
//! Not here: what a name may read.

use std::{fmt, sync::Arc, time::Duration};

use moka::sync::Cache;
use rustls::crypto::aws_lc_rs;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{AccessError, htpasswd::Htpasswd};
use crate::watched::Watched;

/// Checks at once: a core is left for serving on the smallest machine we know.
const CHECKS_MAX: usize = 2;

/// A request waits this long for its check, then it is told to come back.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Answers remembered, the right ones apart, where wrong ones cannot push them out.
const ANSWERS_MAX: u64 = 16_384;

/// For how long after they were last needed. A node asks every few seconds, with an old password too; neither must cost
/// a core.
const ANSWER_IDLE: Duration = Duration::from_secs(3600);

/// Longest password that is looked at. bcrypt itself takes the first 72 bytes.
const PASSWORD_LEN_MAX: usize = 1024;

/// Clones share the answers.
#[derive(Clone)]
pub struct Passwords {
    users: Watched<Htpasswd>,
    right: Cache<[u8; 32], ()>,
    wrong: Cache<[u8; 32], ()>,
    checks: Arc<Semaphore>,
    wait: Duration,
    salt: [u8; 32],
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords")
            .field("users", &self.users)
            .finish_non_exhaustive()
    }
}

impl Passwords {
    pub fn new(users: Watched<Htpasswd>) -> Result<Self, String> {
        let mut salt = [0; 32];
        aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut salt)
            .map_err(|_| "no random numbers".to_owned())?;
        Ok(Self {
            users,
            right: answers(),
            wrong: answers(),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
            wait: WAIT_MAX,
            salt,
        })
    }

    /// Whether the name is one of ours.
    pub fn knows(&self, name: &str) -> bool {
        self.users.get().hash(name).is_some()
    }

    pub async fn is_right(&self, name: &str, password: &str) -> Result<bool, AccessError> {
        if password.len() > PASSWORD_LEN_MAX {
            return Ok(false);
        }
        let users = self.users.get();
        let known = users.hash(name);
        let Some(hash) = known.or_else(|| users.any_hash()) else {
            return Ok(false);
        };
        let key = self.key(name, password, hash, known.is_some());
        if let Some(answer) = self.remembered(&key) {
            return Ok(answer);
        }
        let permit = tokio::time::timeout(self.wait, self.checks.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(AccessError::Busy);
        };
        // Somebody who asked the same may have been before us in the queue.
        if let Some(answer) = self.remembered(&key) {
            return Ok(answer);
        }
        let (hash, password, is_known) = (hash.to_owned(), password.to_owned(), known.is_some());
        let (right_ones, wrong_ones) = (self.right.clone(), self.wrong.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let right = bcrypt::verify(password, &hash).unwrap_or(false) && is_known;
            // Here, for a client that went away has still cost the check.
            if right { right_ones } else { wrong_ones }.insert(key, ());
            right
        });
        checked.await.map_err(|_| AccessError::Busy)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<bool> {
        match self.right.get(key) {
            Some(()) => Some(true),
            None => self.wrong.get(key).map(|()| false),
        }
    }

    fn key(&self, name: &str, password: &str, hash: &str, is_known: bool) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.salt);
        hasher.update([u8::from(is_known)]);
        for part in [name, password, hash] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

fn answers() -> Cache<[u8; 32], ()> {
    Cache::builder()
        .max_capacity(ANSWERS_MAX)
        .time_to_idle(ANSWER_IDLE)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords(lines: &str) -> (tempfile::TempDir, Passwords) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        std::fs::write(&path, lines).unwrap();
        let users = Watched::start(vec![path.clone()], move || {
            Htpasswd::parse(&crate::watched::read_file(&path)?)
        });
        (dir, Passwords::new(users.unwrap()).unwrap())
    }

    #[tokio::test]
    async fn right_wrong_unknown_and_remembered() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let (_dir, passwords) = passwords(&format!("alice:{hash}\n"));
        for _ in 0..2 {
            assert!(passwords.is_right("alice", "secret").await.unwrap());
            assert!(!passwords.is_right("alice", "wrong").await.unwrap());
            // Not even with the password whose hash its time was spent on.
            assert!(!passwords.is_right("mallory", "secret").await.unwrap());
            assert!(!passwords.is_right("alice", &"x".repeat(2000)).await.unwrap());
        }
        for (of, count) in [(&passwords.right, 1), (&passwords.wrong, 2)] {
            of.run_pending_tasks();
            assert_eq!(of.entry_count(), count);
        }
    }

    /// Wrong passwords shared one cache with the right ones, and whoever sent enough of them made every node wait for
    /// bcrypt again, behind the flood.
    #[tokio::test]
    async fn wrong_answers_do_not_push_out_right_ones() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let (_dir, passwords) = passwords(&format!("alice:{hash}\n"));
        assert!(passwords.is_right("alice", "secret").await.unwrap());
        for n in 0..3 * ANSWERS_MAX {
            passwords
                .wrong
                .insert(passwords.key("mallory", &n.to_string(), &hash, false), ());
        }
        for of in [&passwords.right, &passwords.wrong] {
            of.run_pending_tasks();
        }
        assert!(passwords.wrong.entry_count() <= ANSWERS_MAX);
        assert_eq!(passwords.right.entry_count(), 1);
    }

    /// With no permit to be had, what is remembered is answered all the same.
    #[tokio::test]
    async fn checks_are_few_and_answers_many() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let (_dir, mut passwords) = passwords(&format!("alice:{hash}\n"));
        assert!(passwords.is_right("alice", "secret").await.unwrap());
        passwords.wait = Duration::from_millis(50);
        let _all = passwords
            .checks
            .clone()
            .acquire_many_owned(CHECKS_MAX as u32)
            .await
            .unwrap();
        assert!(passwords.is_right("alice", "secret").await.unwrap());
        assert!(matches!(
            passwords.is_right("alice", "other").await,
            Err(AccessError::Busy)
        ));
    }
}
