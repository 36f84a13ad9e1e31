//! What the workload writes says what it is: its name, its version, its length, its checksum.

use crate::history::State;

/// The length of a document's first line.
const HEAD: usize = 80;

/// Reads what a file called `name` holds.
///
/// # Errors
/// What is wrong with it: it is no whole version with whole records after it.
pub fn parse(name: &str, bytes: &[u8]) -> Result<State, String> {
    let label = label(name);
    let (version, mut rest) = match bytes.starts_with(b"document ") {
        true => document(label, bytes)?,
        false => (None, bytes),
    };
    let mut records = 0;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = end.map(|end| &rest[..end]).filter(|line| {
            let whole = (label, version.unwrap_or(0), records + 1);
            record(line, whole).is_some()
        });
        let Some(line) = line else {
            let (at, of) = (bytes.len() - rest.len(), bytes.len());
            let zeros = rest.iter().all(|byte| *byte == 0);
            let zeros = if zeros { ", all zeros" } else { "" };
            return Err(format!(
                "no whole record {} at {at} of {of}{zeros}",
                records + 1
            ));
        };
        rest = &rest[line.len() + 1..];
        records += 1;
    }
    if bytes.is_empty() && is_document(name) {
        return Err(String::from("empty"));
    }
    Ok(Some((version.unwrap_or(0), records)))
}

fn document<'a>(label: &str, bytes: &'a [u8]) -> Result<(Option<u64>, &'a [u8]), String> {
    let damaged = || String::from("the first line is damaged");
    let (head, body) = bytes.split_at_checked(HEAD).ok_or_else(damaged)?;
    let head = std::str::from_utf8(head).map_err(|_| damaged())?;
    let words: Vec<&str> = head.split_whitespace().collect();
    let [_, name, version, length, crc] = words[..] else {
        return Err(damaged());
    };
    let version: u64 = version.parse().map_err(|_| damaged())?;
    let length: usize = length.parse().map_err(|_| damaged())?;
    if name != label {
        return Err(format!("it is {name}"));
    }
    let Some((body, rest)) = body.split_at_checked(length) else {
        return Err(format!(
            "version {version} has {} of {length} bytes",
            body.len()
        ));
    };
    if format!("{:08x}", crc32fast::hash(body)) != crc {
        return Err(format!("version {version} has the wrong checksum"));
    }
    Ok((Some(version), rest))
}

fn record(line: &[u8], (name, version, number): (&str, u64, u64)) -> Option<()> {
    let line = std::str::from_utf8(line).ok()?;
    let (crc, text) = line.strip_prefix("record ")?.split_once(' ')?;
    let right = crc == format!("{:08x}", crc32fast::hash(text.as_bytes()));
    let begin = format!("{name} {version} {number} ");
    (right && text.starts_with(&begin)).then_some(())
}

/// By which name a file calls itself.
fn label(name: &str) -> &str {
    match name {
        "link" => "linked",
        name if name.starts_with("moves/temporary-") => "moves/renamed",
        name => name,
    }
}

/// Is it no log?
fn is_document(name: &str) -> bool {
    !matches!(name, "append" | "lines") && !name.starts_with("logs/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_document(body: &str) -> Vec<u8> {
        let crc = crc32fast::hash(body.as_bytes());
        let head = format!("document a 0000000007 {:08} {crc:08x}", body.len());
        format!("{head:79}\n{body}").into_bytes()
    }

    #[test]
    fn a_whole_version_is_told_from_a_torn_one() {
        let whole = a_document("content");
        assert_eq!(parse("a", &whole), Ok(Some((7, 0))));
        assert!(parse("b", &whole).is_err());
        assert!(parse("a", &whole[..whole.len() - 1]).is_err());
        assert!(parse("a", b"").is_err());
        assert!(parse("a", &[0; 5]).is_err());
        let mut torn = whole.clone();
        torn[82] = 0;
        assert!(parse("a", &torn).is_err());
        torn = whole;
        torn.push(0);
        assert!(parse("a", &torn).is_err());
    }

    #[test]
    fn a_log_ends_at_a_record_and_lacks_none_in_between() {
        let record = |number| {
            let text = format!("append 0 {number} xx");
            let crc = crc32fast::hash(text.as_bytes());
            format!("record {crc:08x} {text}\n")
        };
        let log = |numbers: &[u64]| numbers.iter().map(|n| record(*n)).collect::<String>();
        let parse = |text: String| parse("append", text.as_bytes()).ok();
        assert_eq!(parse(String::new()), Some(Some((0, 0))));
        assert_eq!(parse(log(&[1, 2])), Some(Some((0, 2))));
        assert_eq!(parse(log(&[1, 3])), None);
        assert_eq!(parse(log(&[1]) + &record(2)[..10]), None);
        assert_eq!(parse(log(&[1]) + "\0\0"), None);
    }
}
