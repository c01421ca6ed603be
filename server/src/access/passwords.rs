//! Checking passwords without letting anybody keep the cores busy.
//!
//! In: a name and a password. Out: right or wrong.
//! Invariant: bcrypt, which takes its time on purpose, runs for at most [`CHECKS_MAX`] requests at once and once for the
//! same question while the answer is remembered. Answers are remembered by a keyed hash over name, password and stored
//! hash, so a changed file is asked anew and memory holds no password. A name that is unknown takes as long as one that
//! is known.
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

/// Answers remembered.
const ANSWERS_MAX: u64 = 16_384;

/// For how long. A node with an old password asks every few seconds; it must not cost a core.
const ANSWER_LIFE: Duration = Duration::from_secs(300);

/// Longest password that is looked at. bcrypt itself takes the first 72 bytes.
const PASSWORD_LEN_MAX: usize = 1024;

/// Clones share the answers.
#[derive(Clone)]
pub struct Passwords {
    users: Watched<Htpasswd>,
    answers: Cache<[u8; 32], bool>,
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
            answers: Cache::builder()
                .max_capacity(ANSWERS_MAX)
                .time_to_live(ANSWER_LIFE)
                .build(),
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
        let key = self.key(name, password, hash);
        if let Some(answer) = self.answers.get(&key) {
            return Ok(answer);
        }
        let permit = tokio::time::timeout(self.wait, self.checks.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(AccessError::Busy);
        };
        // Somebody who asked the same may have been before us in the queue.
        if let Some(answer) = self.answers.get(&key) {
            return Ok(answer);
        }
        let (hash, password, is_known) = (hash.to_owned(), password.to_owned(), known.is_some());
        let answers = self.answers.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let right = bcrypt::verify(password, &hash).unwrap_or(false) && is_known;
            // Here, for a client that went away has still cost the check.
            answers.insert(key, right);
            right
        });
        checked.await.map_err(|_| AccessError::Busy)
    }

    fn key(&self, name: &str, password: &str, hash: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.salt);
        for part in [name, password, hash] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
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
        passwords.answers.run_pending_tasks();
        assert_eq!(passwords.answers.entry_count(), 3);
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
