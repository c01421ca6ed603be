//! Which process, also after its number has been given to another.
//!
//! In: a number, `/proc`. Out: [`ProcessId`], its text, and whether that process is gone.
//! Invariant: "gone" is said only of a process of this PID namespace that has ended, be it that its parent has not waited for
//! it or that a thread of it hangs in the kernel; when in doubt it lives. Not here: what follows from that.
//!
//! The text is `<pid> <start time> <PID namespace>`: fields 1 and 22 of `/proc/<pid>/stat` (proc(5)), and the inode of
//! `/proc/self/ns/pid`. Each has as many zeros before it as make all texts equally long.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pid: u32,
    /// In ticks since boot.
    started: u64,
    namespace: u64,
}

impl ProcessId {
    pub(crate) fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            started: Stat::of(pid)?.started,
            namespace: namespace()?,
        })
    }

    pub(crate) fn is_gone(&self) -> bool {
        // Numbers of another namespace say nothing here.
        if namespace().ok() != Some(self.namespace) {
            return false;
        }
        match Stat::of(self.pid) {
            Ok(stat) => stat.ended || stat.started != self.started,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }
}

/// Whether no process of this PID namespace goes on under that number.
pub(crate) fn has_ended(pid: u32) -> bool {
    match Stat::of(pid) {
        Ok(stat) => stat.ended,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010} {:020} {:020}", self.pid, self.started, self.namespace)
    }
}

impl FromStr for ProcessId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or(());
        let id = Self {
            pid: word()?.parse().map_err(drop)?,
            started: word()?.parse().map_err(drop)?,
            namespace: word()?.parse().map_err(drop)?,
        };
        words.next().is_none().then_some(id).ok_or(())
    }
}

fn namespace() -> io::Result<u64> {
    std::fs::metadata("/proc/self/ns/pid").map(|m| m.ino())
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Its first thread has ended: here that is how all of a shim ends.
    ended: bool,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        let text =
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| match error.raw_os_error() {
                // It went between open and read.
                Some(errno) if errno == rustix::io::Errno::SRCH.raw_os_error() => ErrorKind::NotFound.into(),
                _ => error,
            })?;
        Self::parse(&text).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    fn parse(text: &str) -> Option<Self> {
        // The name, in brackets, may have blanks and brackets itself. What follows starts with field 3.
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let started = fields.nth(22 - 3 - 1)?.parse().ok()?;
        Some(Self {
            ended: matches!(state, "Z" | "X" | "x"),
            started,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LARGEST: ProcessId = ProcessId {
        pid: u32::MAX,
        started: u64::MAX,
        namespace: u64::MAX,
    };

    #[test]
    fn a_process_lives_until_it_is_killed() {
        assert!(!ProcessId::own().unwrap().is_gone());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(!id.is_gone());
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), LARGEST.to_string().len());
        assert_eq!(LARGEST.to_string().parse(), Ok(LARGEST));
        // As earlier shims wrote it.
        let short = format!("{} {} {}", id.pid, id.started, id.namespace);
        assert_eq!(short.parse(), Ok(id));
        child.kill().unwrap();
        // Nobody has waited for it.
        while !id.is_gone() {
            std::thread::yield_now();
        }
        assert!(has_ended(child.id()));
        child.wait().unwrap();
        assert!(id.is_gone() && has_ended(child.id()));
        assert!(!has_ended(std::process::id()));
        assert_eq!(ProcessId::of(child.id()).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_number_given_again_is_another_process_and_one_of_elsewhere_lives() {
        let own = ProcessId::own().unwrap();
        let earlier = ProcessId {
            started: own.started - 1,
            ..own
        };
        assert!(earlier.is_gone());
        let elsewhere = ProcessId {
            namespace: own.namespace + 1,
            ..earlier
        };
        assert!(!elsewhere.is_gone());
    }

    #[test]
    fn names_of_programs_are_of_any_kind() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n")
        };
        for name in ["x", "a b", "a) Z (b", ")"] {
            let parsed = |state| Stat::parse(&stat(name, state)).unwrap();
            assert_eq!(
                parsed("S"),
                Stat {
                    ended: false,
                    started: 4711
                },
                "{name}"
            );
            assert!(parsed("Z").ended, "{name}");
        }
        for text in ["", "7 (x) S 1", "7 x S"] {
            assert_eq!(Stat::parse(text), None);
        }
    }
}
