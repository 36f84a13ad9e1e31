//! The phases of an analysis: `save_analysis_phase_safe`, `load_analysis_phase_safe`,
//! `is_analysis_complete`.
//!
//! `cargo run --example analysis [DIR]`; then `latchfs phases DIR` tells how far it is. The same in
//! Python, without this library, for a directory in a mount: `examples/pipeline.py`.

use latchfs::Phase;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

/// What the example does, in a directory of its own.
pub fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    // The pipeline: each phase takes up what the one before has left.
    latchfs::save_analysis_phase_safe(dir, "stock_universe", &json!(["AAPL", "MSFT", "NVDA"]))?;
    for pair in Phase::ALL.windows(2) {
        assert!(!latchfs::is_analysis_complete(dir)?);
        let before: Value = latchfs::load_analysis_phase_safe(dir, pair[0])?
            .ok_or_else(|| format!("{} has not run", pair[0]))?;
        let symbols = before.get("symbols").unwrap_or(&before);
        let found = json!({"phase": pair[1].name(), "symbols": symbols});
        latchfs::save_analysis_phase_safe(dir, pair[1], &found)?;
    }

    // The web app: shows the rankings once everything is there.
    if latchfs::is_analysis_complete(dir)? {
        let rankings: Option<Value> = latchfs::load_analysis_phase_safe(dir, "final_rankings")?;
        println!("{}", rankings.unwrap_or_default());
    }
    let wrong = latchfs::load_analysis_phase_safe::<Value>(dir, "rankings");
    println!("{}", wrong.expect_err("there is no such phase"));
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        Some(dir) => run(Path::new(&dir)),
        None => run(tempfile::tempdir()?.path()),
    }
}
