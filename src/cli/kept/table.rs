//! Kept versions for people: a table, or one of them in full.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::termios::{isatty, tcgetwinsize};

use super::{Shelf, human_size};
use crate::backing::kept::Entry;
use crate::show::printable;

const HEAD: [&str; 6] = ["ID", "AGE", "SIZE", "WHY", "PROGRAM", "PATH"];
/// The columns before the path that are left out first on a narrow terminal, and the width below which
/// they are.
const NARROW: [(usize, usize); 2] = [(4, 72), (3, 50)];

/// All of them, a line each.
pub(super) fn list(shelf: &Shelf, now: SystemTime) -> String {
    if shelf.entries.is_empty() {
        return format!("{}: nothing is kept\n", shelf.named());
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(shelf.entries.iter().map(|entry| row(entry, now)));
    layout(&rows, width())
}

fn row(entry: &Entry, now: SystemTime) -> [String; 6] {
    let record = &entry.record;
    let why = match entry.flaw {
        Some(_) => String::from("damaged"),
        None => record.kind.to_string(),
    };
    let program = match record.program.is_empty() {
        true => String::from("?"),
        false => format!("{} ({})", printable(&record.program), record.pid),
    };
    [
        entry.id.clone(),
        age(record.time, now),
        human_size(entry.stat.st_size as u64),
        why,
        program,
        shown_path(&record.path()),
    ]
}

fn shown_path(path: &Path) -> String {
    match path.as_os_str().is_empty() {
        true => String::from("?"),
        false => printable(path),
    }
}

/// The width of the terminal; `None` where the output goes elsewhere, and nothing is cut.
fn width() -> Option<usize> {
    let out = rustix::stdio::stdout();
    let size = isatty(out).then(|| tcgetwinsize(out).ok())??;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

fn layout(rows: &[[String; 6]], width: Option<usize>) -> String {
    let too_narrow = |column: &usize| {
        let limit = NARROW.iter().find(|(narrow, _)| narrow == column);
        limit.is_some_and(|(_, below)| width.is_some_and(|width| width < *below))
    };
    let columns: Vec<usize> = (0..HEAD.len()).filter(|c| !too_narrow(c)).collect();
    let length = |text: &str| text.chars().count();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for column in &columns {
            let cell = &row[*column];
            if *column == HEAD.len() - 1 {
                line.push_str(cell);
                continue;
            }
            let widest = rows.iter().map(|row| length(&row[*column])).max();
            let pad = widest.unwrap_or(0).saturating_sub(length(cell));
            let space = " ".repeat(pad);
            // Sizes are compared by their last digit.
            let _ = match *column {
                2 => write!(line, "{space}{cell}  "),
                _ => write!(line, "{cell}{space}  "),
            };
        }
        text.push_str(&cut(line, width));
        text.push('\n');
    }
    text
}

/// The line as far as it fits.
fn cut(line: String, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            let mut short: String = line.chars().take(width.saturating_sub(1)).collect();
            short.push('…');
            short
        }
        _ => line,
    }
}

/// How long ago that is, in its largest unit.
fn age(time: u64, now: SystemTime) -> String {
    let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time));
    let age = then.and_then(|then| now.duration_since(then).ok());
    let seconds = age.unwrap_or_default().as_secs();
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds >= 2 * length {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

/// All that is known of one.
pub(super) fn show(shelf: &Shelf, entry: &Entry, now: SystemTime) -> String {
    let record = &entry.record;
    let size = entry.stat.st_size as u64;
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(record.time));
    let since = since.unwrap_or(now);
    let user = record.uid.map_or(String::from("?"), |uid| uid.to_string());
    let mut lines = vec![
        ("id", entry.id.clone()),
        ("path", shown_path(&record.path())),
        (
            "kept",
            format!(
                "{} ({} ago)",
                humantime::format_rfc3339_seconds(since),
                age(record.time, now)
            ),
        ),
        (
            "why",
            format!("{}: {}", record.kind, printable(&record.reason)),
        ),
        (
            "program",
            format!(
                "{}, process {}, user {user}",
                printable(&record.program),
                record.pid
            ),
        ),
        ("size", format!("{size} bytes ({})", human_size(size))),
        (
            "attributes",
            format!(
                "mode {:04o}, user {}, group {}",
                entry.stat.st_mode & 0o7777,
                entry.stat.st_uid,
                entry.stat.st_gid
            ),
        ),
    ];
    if let Some(flaw) = entry.flaw {
        lines.push(("damaged", flaw.to_string()));
    }
    let restore = format!("latchfs kept restore {} {}", shelf.word(), entry.id);
    lines.push(("restore by", restore));
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<[String; 6]> {
        let rows = [
            HEAD,
            [
                "0a1b2c3d",
                "3d",
                "1.0 KiB",
                "rolled-back",
                "vim (12)",
                "/d/long/path",
            ],
            [
                "ffffffff",
                "20m",
                "7 B",
                "refused",
                "python3 (4194304)",
                "/f",
            ],
        ];
        rows.map(|row| row.map(str::to_owned)).to_vec()
    }

    #[test]
    fn columns_stand_below_one_another() {
        let text = layout(&rows(), None);
        let expected = "\
ID        AGE     SIZE  WHY          PROGRAM            PATH
0a1b2c3d  3d   1.0 KiB  rolled-back  vim (12)           /d/long/path
ffffffff  20m      7 B  refused      python3 (4194304)  /f
";
        assert_eq!(text, expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_ids_stay_whole() {
        for width in [12, 40, 60, 66, 80, 200] {
            let text = layout(&rows(), Some(width));
            assert_eq!(text.lines().count(), 3);
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            assert!(text.contains("\n0a1b2c3d "), "{text}");
        }
        assert!(layout(&rows(), Some(60)).contains("/d/long/path"));
        assert!(!layout(&rows(), Some(60)).contains("vim"));
    }

    #[test]
    fn ages_are_in_their_largest_unit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000);
        for (ago, shown) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_800, "2d"),
            (9_000_000, "104d"),
        ] {
            assert_eq!(age(10_000_000 - ago, now), shown);
        }
        // A clock that was set back.
        assert_eq!(age(10_000_001, now), "0s");
        assert_eq!(age(u64::MAX, now), "0s");
    }
}
