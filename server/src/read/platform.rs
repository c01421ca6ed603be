//! What an index says its images are for.
//!
//! In: `os/architecture[/variant]`, as indexes and people write it. Out: [`Platform`]s that can be compared.
//! Invariant: other spellings of the same machine are the same platform.
//! Not here: which platforms are wanted.

use serde::Deserialize;

/// OCI image index, `platform` of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on machines like ours.
    pub fn own() -> Self {
        Self {
            os: "linux".into(),
            architecture: std::env::consts::ARCH.into(),
            variant: None,
        }
    }

    /// Whether this is what is meant by `wanted`, which may leave the variant open.
    pub fn is(&self, wanted: &Platform) -> bool {
        (&self.os, self.architecture()) == (&wanted.os, wanted.architecture())
            && (wanted.variant.is_none() || wanted.variant() == self.variant())
    }

    /// Some write it as their kernel does.
    fn architecture(&self) -> &str {
        match self.architecture.as_str() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }

    /// The variant that is meant when none is written is the same as none.
    fn variant(&self) -> Option<&str> {
        let usual = match self.architecture() {
            "amd64" => "v1",
            "arm64" => "v8",
            "arm" => "v7",
            _ => "",
        };
        self.variant.as_deref().filter(|v| !v.is_empty() && *v != usual)
    }
}
