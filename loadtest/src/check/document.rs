//! A table in a document that is written from code.
//!
//! In: a document with two marks, and the table. Out: nothing, or a panic that says how to write it. Invariant: prose outside the marks is
//! left alone. Not here: what is in the table.

use std::path::Path;

const BEGIN: &str = "<!-- table: written by a test, see the end -->\n";
const END: &str = "<!-- end of table -->\n";

/// Compares, or writes with `HEADSTART_WRITE=1`. `crate_dir`: where the document is.
#[track_caller]
pub fn assert_document(crate_dir: &str, name: &str, table: &str) {
    let path = Path::new(crate_dir).join(name);
    let text = std::fs::read_to_string(&path).expect("read the document");
    let (head, rest) = text.split_once(BEGIN).expect("the document has a table");
    let (found, tail) = rest.split_once(END).expect("the table ends");
    if std::env::var_os("HEADSTART_WRITE").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{table}{END}{tail}")).expect("write the document");
        return;
    }
    assert_eq!(
        found, table,
        "{name} is behind the code: HEADSTART_WRITE=1 cargo test --workspace --lib the_document_has"
    );
}
