//! containerd's filter language, as `List` receives it.
//!
//! ```text
//! filter   = selector *("," selector)              all must match; several filters: one must
//! selector = path [operator value]                 without an operator: the field is present
//! path     = field *("." field)
//! field    = quoted / ALPHA *(ALPHA / DIGIT / "_")
//! operator = "==" / "!=" / "~="
//! value    = quoted / 1*(any but space and ",")
//! quoted   = a Go string: "..." with escapes; in values of operators also /.../ and |...|
//! ```
//! In: filter texts and a [`Record`]. Out: whether it matches. Invariant: a text that does not parse is an error, not a
//! filter that matches everything. Fields are `name`, `parent`, `kind` and `labels.<key>`.
//! Not here: which records there are.

use regex::{Regex, RegexBuilder};

use super::error::SnapshotError;
use super::record::Record;

/// Longest filter text: a label is at most 4096 bytes.
const FILTER_LEN_MAX: usize = 64 << 10;
/// Filters of one call. containerd sends one.
const FILTERS_MAX: usize = 256;
/// Memory of one compiled `~=`.
const REGEX_SIZE_MAX: usize = 1 << 20;

/// Filters of one call: any of them lets a record pass; none at all lets every one pass.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    pub fn parse(texts: &[String]) -> Result<Self, SnapshotError> {
        if texts.len() > FILTERS_MAX || texts.iter().any(|t| t.len() > FILTER_LEN_MAX) {
            return Err(SnapshotError::Invalid("too many or too long filters".into()));
        }
        let filters = texts.iter().map(|text| {
            Parser::new(text)
                .filter()
                .map_err(|why| SnapshotError::Invalid(format!("filter {text:?}: {why}")))
        });
        Ok(Self(filters.collect::<Result<_, _>>()?))
    }

    pub fn matches(&self, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|s| s.matches(record)))
    }
}

impl Selector {
    fn matches(&self, record: &Record) -> bool {
        let value = field(record, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value == Some(want),
            // An absent field differs from every value, as containerd has it.
            Test::NotEqual(want) => value.unwrap_or("") != want,
            Test::Matches(regex) => regex.is_match(value.unwrap_or("")),
        }
    }
}

fn field<'a>(record: &'a Record, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&record.name),
        "parent" => Some(&record.parent),
        "kind" => Some(record.kind.as_str()),
        "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

/// What is left to read.
#[derive(Debug)]
struct Parser<'a>(&'a str);

type Parsed<T> = Result<T, &'static str>;

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self(text)
    }

    fn filter(mut self) -> Parsed<Vec<Selector>> {
        let mut selectors = Vec::new();
        if self.0.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.eat(",") {
                true => {}
                false if self.0.is_empty() => return Ok(selectors),
                false => return Err("expected ',' or the end"),
            }
        }
    }

    fn selector(&mut self) -> Parsed<Selector> {
        let mut path = vec![self.field()?];
        while self.eat(".") {
            path.push(self.field()?);
        }
        let test = if self.eat("==") {
            Test::Equal(self.value()?)
        } else if self.eat("!=") {
            Test::NotEqual(self.value()?)
        } else if self.eat("~=") {
            let value = self.value()?;
            let regex = RegexBuilder::new(&value).size_limit(REGEX_SIZE_MAX).build();
            Test::Matches(regex.map_err(|_| "invalid or too large regular expression")?)
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn eat(&mut self, token: &str) -> bool {
        let rest = self.0.strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn field(&mut self) -> Parsed<String> {
        if self.0.starts_with('"') {
            return self.quoted('"');
        }
        if !self.0.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err("expected a field name");
        }
        let end = self.0.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        Ok(self.take(end.unwrap_or(self.0.len())).to_owned())
    }

    fn value(&mut self) -> Parsed<String> {
        if let Some(quote @ ('"' | '/' | '|')) = self.0.chars().next() {
            return self.quoted(quote);
        }
        let end = self.0.find(|c: char| c == ',' || c.is_whitespace());
        match self.take(end.unwrap_or(self.0.len())) {
            "" => Err("expected a value"),
            value => Ok(value.to_owned()),
        }
    }

    /// A Go interpreted string. Between `/` or `|` a backslash stays as it is unless it hides the delimiter, so that
    /// regular expressions need no doubling.
    fn quoted(&mut self, quote: char) -> Parsed<String> {
        let mut out = Vec::new();
        let mut chars = self.0.char_indices();
        chars.next();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.0 = &self.0[at + c.len_utf8()..];
                return String::from_utf8(out).map_err(|_| "quoted text is not UTF-8");
            }
            if c != '\\' {
                push(&mut out, c);
                continue;
            }
            let (_, escaped) = chars.next().ok_or("quoted text has no end")?;
            if quote != '"' {
                if escaped != quote {
                    out.push(b'\\');
                }
                push(&mut out, escaped);
                continue;
            }
            unescape(&mut out, escaped, &mut chars)?;
        }
        Err("quoted text has no end")
    }
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// The escapes of a Go interpreted string literal (Go spec, "Rune literals"); `c` follows the backslash.
fn unescape(out: &mut Vec<u8>, c: char, rest: &mut std::str::CharIndices<'_>) -> Parsed<()> {
    let mut number = |first: u32, radix: u32, digits: usize| {
        (0..digits).try_fold(first, |n, _| {
            let digit = rest.next().and_then(|(_, c)| c.to_digit(radix));
            digit.map(|d| n * radix + d).ok_or("bad escape in quoted text")
        })
    };
    let byte = |n: u32| u8::try_from(n).map_err(|_| "bad escape in quoted text");
    let plain = match c {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        'x' => byte(number(0, 16, 2)?)?,
        '0'..='7' => byte(number(c.to_digit(8).unwrap_or(0), 8, 2)?)?,
        'u' | 'U' => {
            let n = number(0, 16, if c == 'u' { 4 } else { 8 })?;
            push(out, char::from_u32(n).ok_or("bad escape in quoted text")?);
            return Ok(());
        }
        _ => return Err("bad escape in quoted text"),
    };
    out.push(plain);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::{Kind, Labels, RECORD_VERSION, SnapshotId, TimeNs, Usage};
    use super::*;

    fn record() -> Record {
        let labels: Labels = [
            ("containerd.io/snapshot.ref", "sha256:ab"),
            ("plain", "x y"),
            ("a.b", "1"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        Record {
            version: RECORD_VERSION,
            id: SnapshotId(1),
            name: "default/1/top".into(),
            parent: "default/1/base".into(),
            kind: Kind::Committed,
            labels,
            created: TimeNs::now(),
            updated: TimeNs::now(),
            usage: Usage::default(),
            lazy: None,
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let texts: Vec<_> = filters.iter().map(|f| f.to_string()).collect();
        Filters::parse(&texts).unwrap().matches(&record())
    }

    #[test]
    fn what_containerd_sends_matches() {
        assert!(passes(&[
            r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="default/1/base""#
        ]));
        assert!(!passes(&[
            r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="""#
        ]));
        assert!(!passes(&[
            r#"labels."containerd.io/snapshot.ref"==sha256:cd,parent=="default/1/base""#
        ]));
    }

    #[test]
    fn every_operator_and_combination() {
        for yes in [
            &[][..],
            &[""],
            &["kind==committed"],
            &["kind!=active,name==default/1/top"],
            &["kind==active", "kind==committed"],
            &["labels.plain"],
            &[r#"labels.plain=="x y""#],
            &["labels.a.b==1"],
            &[r#"labels."a.b"==1"#],
            &["labels.absent!=1"],
            &["name~=^default/[0-9]/t"],
            &["name~=/top$/"],
            &[r"name~=|default\/1|"],
            &[r#"name=="default\u002f1/to\x70""#],
            &[r#"name=="\144efault/1/top""#],
        ] {
            assert!(passes(yes), "{yes:?}");
        }
        for no in [
            "kind==active",
            "kind!=committed",
            "labels.absent",
            "labels.absent==1",
            "labels",
            "unknown==1",
            "name~=^top",
            "kind==committed,name==x",
        ] {
            assert!(!passes(&[no]), "{no:?}");
        }
    }

    #[test]
    fn malformed_filters_are_errors() {
        for bad in [
            ",",
            "name==",
            "name=",
            "name=x",
            "==x",
            "name==a,",
            "name==\"a",
            "name==a b",
            "name~=(",
            "name==\"\\q\"",
            "a..b",
            "name==\"\\xff\"",
            "1name",
            "name ==a",
            "name==\"\\777\"",
            "name==/a",
        ] {
            assert!(Filters::parse(&[bad.into()]).is_err(), "{bad:?}");
        }
        assert!(Filters::parse(&vec![String::new(); FILTERS_MAX + 1]).is_err());
    }
}
