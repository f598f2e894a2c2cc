//! The configuration that documents itself is in order, for the program as for the reader.

use std::path::Path;
use std::process::Command;

use crate::support::binary;

#[test]
fn the_annotated_example_is_in_order() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/penstock.toml");
    let output = Command::new(binary()).arg("check").arg(file).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
}
