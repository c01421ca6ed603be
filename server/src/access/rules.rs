//! Rules: who may read which repositories.
//!
//! In: `[[access.rules]]`, the names of a client, a repository. Out: yes or no.
//! Invariant: rules only allow; what none allows is not allowed. A rule that names an upstream that is not configured
//! is an error, for it is a misspelt one.
//! Not here: who a client is ([`super::identify`]).

use super::glob::Glob;
use crate::{
    config::{AccessConfig, AccessMode, AccessRule},
    store::facts::Source,
    upstream::Upstreams,
};

/// Rules, and names in one of a rule's lists.
const RULES_MAX: usize = 1024;

/// All of them.
#[derive(Debug)]
pub struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    who: Vec<Who>,
    /// Empty for all.
    upstreams: Vec<Glob>,
    /// Empty for all.
    repositories: Vec<Glob>,
}

#[derive(Debug)]
enum Who {
    Everybody,
    Authenticated,
    Named(Glob),
}

/// Who a client has been found to be.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Empty when it has not said who it is.
    pub names: &'a [String],
    pub authenticated: bool,
}

impl Rules {
    pub fn new(config: &AccessConfig, upstreams: &Upstreams) -> Result<Self, String> {
        let mut rules = Vec::new();
        if config.rules.is_empty() && config.mode == AccessMode::Rules {
            let who = match config.methods.is_empty() {
                true => Who::Everybody,
                false => Who::Authenticated,
            };
            rules.push(Rule {
                who: vec![who],
                upstreams: Vec::new(),
                repositories: Vec::new(),
            });
        }
        if config.rules.len() > RULES_MAX {
            return Err(format!("at most {RULES_MAX} rules"));
        }
        for (at, rule) in config.rules.iter().enumerate() {
            rules.push(Rule::new(rule, upstreams).map_err(|e| format!("rule {}: {e}", at + 1))?);
        }
        Ok(Self(rules))
    }

    /// Whether the client may read the repository.
    pub fn allow(&self, client: Names<'_>, source: &Source) -> bool {
        self.0.iter().any(|rule| rule.is_for(client) && rule.covers(source))
    }

    /// Whether the client may read everything, also what no repository is known for.
    pub fn allow_everything(&self, client: Names<'_>) -> bool {
        self.0
            .iter()
            .any(|rule| rule.is_for(client) && rule.covers_everything())
    }

    /// Whether there is anybody who may read the repository: if not, credentials cannot help.
    pub fn allow_somebody(&self, source: &Source) -> bool {
        self.0.iter().any(|rule| rule.covers(source))
    }

    /// Whether there is anything at all that the client may read.
    pub fn allow_something(&self, client: Names<'_>) -> bool {
        self.0.iter().any(|rule| rule.is_for(client))
    }
}

impl Rule {
    fn new(config: &AccessRule, upstreams: &Upstreams) -> Result<Self, String> {
        if config.who.is_empty() {
            return Err("who is empty".into());
        }
        if [&config.who, &config.upstreams, &config.repositories]
            .iter()
            .any(|list| list.len() > RULES_MAX)
        {
            return Err(format!("at most {RULES_MAX} entries"));
        }
        let who = |name: &String| {
            Ok(match name.as_str() {
                // Whoever may read it without saying who it is may do so by not saying it.
                "*" | "anonymous" => Who::Everybody,
                "authenticated" => Who::Authenticated,
                name => Who::Named(Glob::new(name)?),
            })
        };
        let upstream = |name: &String| {
            let glob = Glob::new(name)?;
            match upstreams.get(name) {
                // By any of its names.
                Some(upstream) => Glob::new(upstream.name()),
                None if glob.is_plain() => Err(format!("no upstream has the name {name:?}")),
                None => Ok(glob),
            }
        };
        Ok(Self {
            who: config.who.iter().map(who).collect::<Result<_, String>>()?,
            upstreams: config.upstreams.iter().map(upstream).collect::<Result<_, _>>()?,
            repositories: config
                .repositories
                .iter()
                .map(|r| Glob::new(r))
                .collect::<Result<_, _>>()?,
        })
    }

    fn is_for(&self, client: Names<'_>) -> bool {
        self.who.iter().any(|who| match who {
            Who::Everybody => true,
            Who::Authenticated => client.authenticated,
            Who::Named(glob) => client.authenticated && client.names.iter().any(|name| glob.matches(name)),
        })
    }

    fn covers(&self, source: &Source) -> bool {
        let any = |globs: &[Glob], name: &str| globs.is_empty() || globs.iter().any(|g| g.matches(name));
        any(&self.upstreams, &source.upstream) && any(&self.repositories, &source.repository)
    }

    fn covers_everything(&self) -> bool {
        let all = |globs: &[Glob]| globs.is_empty() || globs.iter().any(Glob::is_everything);
        all(&self.upstreams) && all(&self.repositories)
    }
}

#[cfg(test)]
mod tests {
    const ANONYMOUS: Names<'static> = Names {
        names: &[],
        authenticated: false,
    };

    use super::*;
    use crate::{
        config::{AccessMethod, Config},
        metrics::Metrics,
    };

    fn rules(toml: &str) -> Result<Rules, String> {
        let config = Config::parse(toml).unwrap();
        Rules::new(&config.access, &Upstreams::new(&config, &Metrics::new()).unwrap())
    }

    fn source(upstream: &str, repository: &str) -> Source {
        Source {
            upstream: upstream.into(),
            repository: repository.into(),
        }
    }

    #[test]
    fn what_no_rule_allows_is_not_allowed() {
        let rules = rules(
            r#"
            [[access.rules]]
            who = ["anonymous"]
            upstreams = ["registry-1.docker.io"]
            repositories = ["library/*"]
            [[access.rules]]
            who = ["ci", "node-*"]
            upstreams = ["docker.io", "*.io"]
            [[access.rules]]
            who = ["authenticated"]
            repositories = ["open/**"]
            "#,
        )
        .unwrap();
        let names = |name: &str| vec![name.to_owned()];
        let (ci, node, other) = (names("ci"), names("node-7"), names("other"));
        let known = |names| Names {
            names,
            authenticated: true,
        };
        let alpine = source("docker.io", "library/alpine");
        assert!(rules.allow(ANONYMOUS, &alpine));
        assert!(!rules.allow(ANONYMOUS, &source("docker.io", "team/a")));
        assert!(!rules.allow(ANONYMOUS, &source("quay.io", "library/alpine")));
        assert!(rules.allow(known(&ci), &source("docker.io", "team/a")));
        assert!(rules.allow(known(&node), &source("ghcr.io", "a")));
        assert!(rules.allow(known(&other), &alpine));
        assert!(rules.allow_somebody(&source("docker.io", "team/a")));
        assert!(!rules.allow_somebody(&source("local", "a")));
        assert!(rules.allow(known(&other), &source("quay.io", "open/a/b")));
        assert!(!rules.allow_everything(known(&ci)));
        assert!(rules.allow_something(ANONYMOUS));
    }

    #[test]
    fn names_that_mean_nothing_are_errors() {
        for bad in ["who = []", "who = [\"a\"]\nupstreams = [\"dokcer.io\"]", "who = [\"\"]"] {
            assert!(rules(&format!("[[access.rules]]\n{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_rules_methods_decide() {
        let config = Config::default();
        let upstreams = Upstreams::new(&config, &Metrics::new()).unwrap();
        let mut access = AccessConfig::default();
        assert!(Rules::new(&access, &upstreams).unwrap().allow_everything(ANONYMOUS));
        access.methods.push(AccessMethod::Token);
        let rules = Rules::new(&access, &upstreams).unwrap();
        assert!(!rules.allow_something(ANONYMOUS));
        let known = Names {
            names: &[],
            authenticated: true,
        };
        assert!(rules.allow_everything(known));
        // The upstream decides; nobody is above it without a rule.
        access.mode = AccessMode::Upstream;
        assert!(!Rules::new(&access, &upstreams).unwrap().allow_something(known));
    }
}
