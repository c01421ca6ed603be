//! `[profile]`: what is learnt of starts, how much of it is believed, and how it is streamed.
//!
//! In: a table of `server.toml`. Out: [`ProfileConfig`]. Invariant: every bound of what nodes may teach is here or in the
//! format's limits; the defaults let a wrong profile cost a node a part of one image.
//! Not here: learning ([`crate::profile`]).

use serde::Deserialize;

/// Profiles.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileConfig {
    /// Whether traces are taken. What is known is given out all the same.
    pub learn: bool,
    /// Profiles that are kept; the least used goes.
    pub profiles_max: usize,
    /// Bytes of them on disk.
    pub profiles_bytes_max: u64,
    /// Kinds of starts of one image.
    pub classes_max: usize,
    /// Starts that a profile is made of: the latest.
    pub starts_max: usize,
    /// Part of these starts, by weight, that needed a chunk, for it to be in the profile.
    pub share_percent_min: u32,
    /// A start weighs half as much as one that is so much younger.
    pub half_life_ms: u64,
    /// Part of the image's bytes that a profile may have.
    pub image_percent_max: u32,
    /// A profile may have so many bytes, whatever part of the image that is.
    pub bytes_floor: u64,
    /// And never more.
    pub bytes_max: u64,
    /// Streams of profiles at once.
    pub streams_max: usize,
    /// Reads of the disk for them at once; clients take turns.
    pub reads_max: usize,
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            learn: true,
            profiles_max: 4096,
            profiles_bytes_max: 256 << 20,
            classes_max: 8,
            starts_max: 16,
            share_percent_min: 34,
            half_life_ms: 7 * 24 * 3_600_000,
            image_percent_max: 50,
            bytes_floor: 16 << 20,
            bytes_max: 1 << 30,
            streams_max: 512,
            reads_max: 4,
        }
    }
}

impl ProfileConfig {
    /// What types cannot say.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.starts_max == 0 || self.starts_max > 64 {
            return Err("profile.starts_max is not between 1 and 64");
        }
        if self.classes_max == 0 || self.profiles_max == 0 || self.reads_max == 0 || self.streams_max == 0 {
            return Err("profile.classes_max, profiles_max, reads_max or streams_max is 0");
        }
        if self.share_percent_min > 100 || self.image_percent_max > 100 {
            return Err("profile.share_percent_min or image_percent_max is over 100");
        }
        if self.half_life_ms == 0 {
            return Err("profile.half_life_ms is 0");
        }
        Ok(())
    }
}
