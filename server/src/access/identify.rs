//! Who a client is.
//!
//! In: what it has shown. Out: its names.
//! Invariant: a certificate counts as the TLS handshake verified it; credentials count only if they are right. Credentials
//! that could be meant for us (a user of ours with a wrong password, a name of ours with a token that was replaced, a
//! token of ours under another name) are never taken for somebody else's: those would be shown to an upstream.
//! Not here: what a name may read ([`super::rules`]).

use std::path::PathBuf;

use super::{AccessError, Client, Shown, htpasswd::Htpasswd, passwords::Passwords, tokens::Tokens};
use crate::{
    config::{AccessConfig, AccessMethod},
    watched::{Watched, read_file},
};

/// The configured ways.
#[derive(Clone, Debug)]
pub struct Identify {
    passwords: Option<Passwords>,
    tokens: Option<Watched<Tokens>>,
    certificates: bool,
}

/// What credentials turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    None,
    /// Right, and this is their name.
    Known(String),
    /// Nobody's we know; an upstream may know them.
    Strange,
    /// Meant for us, and wrong.
    Wrong,
}

impl Identify {
    /// To be called on a Tokio runtime.
    pub fn new(config: &AccessConfig) -> Result<Self, String> {
        let has = |method| config.methods.contains(&method);
        let file = |path: &Option<PathBuf>, method: &str, key: &str| {
            path.clone().ok_or_else(|| format!("method {method} needs {key}"))
        };
        let passwords = if has(AccessMethod::Password) {
            let path = file(&config.htpasswd_file, "password", "htpasswd_file")?;
            Some(Passwords::new(watch(path, Htpasswd::parse)?)?)
        } else {
            None
        };
        let tokens = if has(AccessMethod::Token) {
            let path = file(&config.token_file, "token", "token_file")?;
            Some(watch(path, Tokens::parse)?)
        } else {
            None
        };
        Ok(Self {
            passwords,
            tokens,
            certificates: has(AccessMethod::Certificate),
        })
    }

    /// Whether there is any way to say who one is.
    pub fn is_configured(&self) -> bool {
        self.takes_credentials() || self.certificates
    }

    /// Whether an `Authorization` header could say who a client is.
    pub fn takes_credentials(&self) -> bool {
        self.passwords.is_some() || self.tokens.is_some()
    }

    /// Names in the client's certificate; `None` without one, or if certificates do not count.
    pub fn certificate<'c>(&self, client: &'c Client) -> Option<&'c [String]> {
        client.peer.names.as_deref().filter(|_| self.certificates)
    }

    /// What the client's `Authorization` header says.
    pub async fn credentials(&self, client: &Client) -> Result<Credentials, AccessError> {
        match &client.shown {
            Shown::Nothing => Ok(Credentials::None),
            Shown::Other => Ok(Credentials::Wrong),
            Shown::Bearer { token, .. } => {
                let tokens = self.tokens.as_ref().map(Watched::get);
                let name = tokens.as_ref().and_then(|tokens| tokens.name(token));
                Ok(name.map_or(Credentials::Strange, |name| Credentials::Known(name.to_owned())))
            }
            Shown::Basic { user, password, .. } => self.basic(user, password).await,
        }
    }

    async fn basic(&self, user: &str, password: &str) -> Result<Credentials, AccessError> {
        let mut is_ours = false;
        if let Some(tokens) = self.tokens.as_ref().map(Watched::get) {
            let owner = tokens.name(password);
            if owner == Some(user) {
                return Ok(Credentials::Known(user.to_owned()));
            }
            is_ours = owner.is_some() || tokens.knows(user);
        }
        if let Some(passwords) = &self.passwords {
            if passwords.is_right(user, password).await? {
                return Ok(Credentials::Known(user.to_owned()));
            }
            is_ours |= passwords.knows(user);
        }
        Ok(match is_ours {
            true => Credentials::Wrong,
            false => Credentials::Strange,
        })
    }
}

fn watch<T: Send + Sync + 'static>(
    path: PathBuf,
    parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
) -> Result<Watched<T>, String> {
    Watched::start(vec![path.clone()], move || {
        parse(&read_file(&path)?).map_err(|e| format!("{}: {e}", path.display()))
    })
}
