//! Reading and replacing a JSON document: `safe_read_json`, `safe_write_json`.
//!
//! `cargo run --example safe_json`

use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

/// What the example does, in a directory of its own.
pub fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let path = dir.join("watchlist.json");

    // Not there yet: the default.
    let list: Value = latchfs::safe_read_json(&path, json!({"symbols": []}))?;
    println!("before: {list}");

    // Whole and durable, or not at all.
    latchfs::safe_write_json(&path, &json!({"symbols": ["AAPL", "MSFT"], "updated": 1}))?;

    // Any type of serde's will do.
    #[derive(serde::Deserialize, Default)]
    struct Watchlist {
        symbols: Vec<String>,
    }
    let list = latchfs::safe_read_json(&path, Watchlist::default())?;
    println!("after: {}", list.symbols.join(" "));
    assert_eq!(list.symbols, ["AAPL", "MSFT"]);
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}
