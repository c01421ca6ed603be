//! Mutations of JSON that keep it JSON: members come and go, lists grow, values become others.
//!
//! In: a document, another one, values that mean something, random numbers. Out: a document that differs in a few places.
//! Invariant: what was JSON is JSON. Not here: changes that know nothing (`mutate.rs`).

use headstart_loadtest::corpus::Rng;
use headstart_loadtest::fuzzing::mutate::{LEN_MAX, below, edge, pick};
use serde_json::Value;

/// Copies of a list's element at once.
const COPIES_MAX: usize = 40;

/// What is no JSON stays as it is.
pub fn mutate(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], values: &[Value]) {
    let Ok(mut document) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    let other = serde_json::from_slice::<Value>(other).unwrap_or(Value::Null);
    for _ in 0..1 + rng.below(3) {
        let part = somewhere(rng, &mut document);
        one(rng, part, &other, values);
    }
    let written = document.to_string().into_bytes();
    if written.len() <= LEN_MAX {
        *input = written;
    }
}

/// A random part: the deeper, the rarer.
fn somewhere<'v>(rng: &mut Rng, value: &'v mut Value) -> &'v mut Value {
    let count = match value {
        Value::Array(list) => list.len(),
        Value::Object(members) => members.len(),
        _ => 0,
    };
    if count == 0 || rng.below(5) == 0 {
        return value;
    }
    let at = below(rng, count);
    let inner = match value {
        Value::Array(list) => &mut list[at],
        Value::Object(members) => members.values_mut().nth(at).expect("counted above"),
        _ => unreachable!("it has parts"),
    };
    somewhere(rng, inner)
}

fn one(rng: &mut Rng, value: &mut Value, other: &Value, values: &[Value]) {
    match value {
        Value::Array(list) if !list.is_empty() && rng.below(8) > 0 => {
            let at = below(rng, list.len());
            match rng.below(4) {
                0 => drop(list.remove(at)),
                1 => list.swap(at, 0),
                2 => list.insert(at, pick(rng, values).clone()),
                _ => {
                    let copies = vec![list[at].clone(); 1 + below(rng, COPIES_MAX)];
                    list.splice(at..at, copies);
                }
            }
        }
        Value::Object(members) if !members.is_empty() && rng.below(8) > 0 => {
            let at = below(rng, members.len());
            let key = members.keys().nth(at).expect("counted above").clone();
            match rng.below(3) {
                0 => drop(members.remove(&key)),
                1 => drop(members.insert(key, pick(rng, values).clone())),
                _ => {
                    let theirs = other.as_object().into_iter().flatten();
                    members.extend(theirs.map(|(key, value)| (key.clone(), value.clone())));
                }
            }
        }
        Value::Number(_) if rng.below(8) > 0 => *value = edge(rng).into(),
        _ => *value = pick(rng, values).clone(),
    }
}
