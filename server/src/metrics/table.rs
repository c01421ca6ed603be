//! What a metric is: name, type, unit, labels, meaning; and the macro that makes the tables of [`super::names`].
//!
//! In: rows of `names.rs`. Out: enums that index instruments, and [`Entry`]s for the documentation.
//! Invariant: a label's values are a closed set, so the number of series is bounded whatever clients send.
//! Not here: the rows.

/// One metric.
#[derive(Debug)]
pub struct Entry {
    /// How the code calls it.
    pub variant: &'static str,
    /// Ends in its unit, and in `_total` for counters.
    pub name: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
    pub labels: &'static [Label],
    pub help: &'static str,
}

/// What it does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A dimension of a metric.
#[derive(Debug)]
pub struct Label {
    pub key: &'static str,
    pub values: Values,
}

/// What a label may say.
#[derive(Debug)]
pub enum Values {
    /// One of these; anything else is recorded as `other`.
    Closed(&'static [&'static str]),
    /// The name of a configured upstream.
    Upstreams,
}

/// Makes an enum of metrics of one kind, in the order of its rows.
macro_rules! metrics {
    ($(#[$doc:meta])* $list:ident: $kind:ident; $($variant:ident = $name:literal, $unit:literal, [$($label:expr),*], $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $list {
            $(#[doc = $help] $variant,)*
        }

        impl $list {
            pub const TABLE: &'static [Entry] = &[$(Entry {
                variant: concat!(stringify!($list), "::", stringify!($variant)),
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &[$($label),*],
                help: $help,
            },)*];

            pub fn entry(self) -> &'static Entry {
                &Self::TABLE[self as usize]
            }
        }
    };
}

pub(super) use metrics;
