//! How names are shown to people and to shells.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A path as a word for the shell, so that a command in a message can be copied and run.
pub fn shell_word(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// A name as it can be shown in a line on a terminal: what would act there, end the line or hide the
/// order of its characters is escaped as in Rust (`\n`, `\u{1b}`, and `\xff` for what is not UTF-8).
pub fn printable(name: impl AsRef<std::ffi::OsStr>) -> String {
    let mut shown = String::new();
    for chunk in name.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str(r"\\"),
                _ if acts(c) => shown.extend(c.escape_default()),
                _ => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(shown, r"\x{byte:02x}");
        }
    }
    shown
}

/// Control characters, line and paragraph separators, and marks for the direction of text.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_path_in_a_command_can_be_copied() {
        assert_eq!(shell_word(Path::new("/a/b-c_d.e")), "/a/b-c_d.e");
        assert_eq!(shell_word(Path::new("it's me")), r"'it'\''s me'");
        assert_eq!(shell_word(Path::new("$HOME")), "'$HOME'");
    }

    #[test]
    fn a_name_can_not_act_on_the_terminal() {
        assert_eq!(printable("/a b/ü日"), "/a b/ü日");
        assert_eq!(printable("a\nb\x1b[2J\\"), r"a\nb\u{1b}[2J\\");
        assert_eq!(printable("evil\u{202e}txt"), r"evil\u{202e}txt");
        assert_eq!(printable(OsStr::from_bytes(b"a\xff\xc3z")), r"a\xff\xc3z");
    }
}
