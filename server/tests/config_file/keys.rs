//! The keys that the configuration's types have.
//!
//! In: a type that is read by serde. Out: the path of every key, `upstreams.auth.username`.
//! Invariant: nothing is listed by hand: a type says which fields it has when it is read, so a new key cannot be missed.
//! Not here: defaults and meaning.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, MapAccess, SeqAccess, Visitor, value::StrDeserializer};

/// Every key below a type. Tables are not keys.
pub fn keys_of<'de, T: Deserialize<'de>>() -> Vec<String> {
    let mut keys = Vec::new();
    walk::<T>(&mut Vec::new(), &mut keys);
    keys
}

fn walk<'de, T: Deserialize<'de>>(path: &mut Vec<&'static str>, keys: &mut Vec<String>) {
    let mut fields = None;
    // It always fails: what is wanted is which fields were asked for.
    let _ = T::deserialize(Probe {
        path,
        fields: &mut fields,
    });
    match fields {
        Some(fields) => {
            for field in fields {
                path.push(field);
                walk::<T>(path, keys);
                path.pop();
            }
        }
        None => keys.push(path.join(".")),
    }
}

/// A document with one key at each level, down to the end of a path.
struct Probe<'p> {
    path: &'p [&'static str],
    /// What the type at the end of the path is made of, if it is a struct.
    fields: &'p mut Option<&'static [&'static str]>,
}

#[derive(Debug)]
struct Seen;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seen")
    }
}

impl std::error::Error for Seen {}

impl de::Error for Seen {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> de::Deserializer<'de> for Probe<'_> {
    type Error = Seen;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Seen> {
        match self.path.is_empty() {
            true => {
                *self.fields = Some(fields);
                Err(Seen)
            }
            false => visitor.visit_map(self),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Seen> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Seen> {
        visitor.visit_seq(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Seen> {
        Err(Seen)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Seen;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Seen> {
        let Some(first) = self.path.first() else {
            return Err(Seen);
        };
        seed.deserialize(StrDeserializer::new(first)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Seen> {
        seed.deserialize(Probe {
            path: &self.path[1..],
            fields: self.fields,
        })
    }
}

impl<'de> SeqAccess<'de> for Probe<'_> {
    type Error = Seen;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Seen> {
        seed.deserialize(Probe {
            path: self.path,
            fields: self.fields,
        })
        .map(Some)
    }
}
