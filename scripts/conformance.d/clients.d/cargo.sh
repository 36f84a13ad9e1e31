# packages: gcc libc6-dev
# cargo build and test of a tiny crate: builds, is fresh the second time, builds again after a change,
# incrementally.
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=1
mkdir -p tiny/src tiny/lib/src && cd tiny
printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nlib = { path = "lib" }\n[workspace]\n' >Cargo.toml
printf '[package]\nname = "lib"\nversion = "0.1.0"\nedition = "2021"\n' >lib/Cargo.toml
printf 'fn main() { println!("{}", lib::twice(21)); }\n' >src/main.rs
printf 'pub fn twice(n: u32) -> u32 { 2 * n }\n#[test]\nfn doubles() { assert_eq!(twice(2), 4); }\n' >lib/src/lib.rs
compiled() { cargo build --offline -v 2>&1 | grep -E '^ *(Fresh|Compiling|Dirty)' | sed -E 's/ \(.*//; s/: .*//'; }
compiled && ./target/debug/tiny
compiled
printf 'pub fn twice(n: u32) -> u32 { 2 * n + 1 }\n#[test]\nfn doubles() { assert_eq!(twice(2), 5); }\n' >lib/src/lib.rs
compiled && ./target/debug/tiny
touch src/main.rs
compiled && compiled && ./target/debug/tiny
cargo test --offline -q -p lib 2>&1 | grep -E '^test result: ok. 1 passed' | cut -d';' -f1
cargo run --offline -q
cargo clean -q && ls
