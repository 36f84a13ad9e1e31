//! The documents name tests and files that are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The names of all tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).expect("a source");
        for (at, _) in text.match_indices("#[test]\n") {
            let rest = &text[at..];
            if let Some(start) = rest.find("fn ") {
                let name = rest[start + 3..].split('(').next().unwrap_or_default();
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn looks_like_a_test(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.chars().all(plain) && word.matches('_').count() >= 3
}

/// The tests that a page names; there must be that many at least, and each must exist.
fn check_named(page: &str, least: usize) {
    let tests = tests();
    let text = fs::read_to_string(root().join(page)).expect("the page");
    let named: Vec<&str> = quoted(&text).filter(|w| looks_like_a_test(w)).collect();
    assert!(named.len() > least, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|n| !tests.contains(**n)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_test_named_in_the_semantics_page_exists() {
    check_named("docs/semantics.md", 60);
}

#[test]
fn every_test_named_in_the_security_page_exists() {
    check_named("docs/security.md", 15);
}

#[test]
fn every_test_named_in_the_configuration_page_exists() {
    check_named("docs/configuration.md", 6);
}

#[test]
fn every_test_named_in_the_api_page_exists() {
    check_named("docs/api.md", 20);
}

#[test]
fn every_source_named_in_the_architecture_page_exists() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    for name in quoted(&page).filter(|w| w.ends_with(".rs") || w.ends_with('/')) {
        let places = [
            "",
            "src",
            "src/engine",
            "src/fuse",
            "src/backing",
            "src/cli",
        ];
        let found = places.iter().any(|p| root().join(p).join(name).exists());
        assert!(found, "{name}");
    }
}
