//! What a version must be to become the file: checks of a whole content, in memory that does not
//! grow with it.

use crate::rules::Validation;
use crate::sync::mpsc::{Receiver, channel};
use csv_core::ReadFieldResult;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::IgnoredAny;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a program that checks is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// The most of what a program says that is passed on, in bytes.
const SAID: u64 = 4096;
/// How long that is waited for once the program has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How deep a JSON document may be nested.
const DEEPEST: usize = 1_000_000;

/// Why a content is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A text format, and where it goes wrong (both from 1).
    #[error("line {line}, column {column}: {what}")]
    At {
        /// The line.
        line: usize,
        /// The column, in bytes.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// What a program says of it, or what became of the program.
    #[error("{0}")]
    Refused(String),
}

/// Why no answer could be had.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The content is not what it must be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It could not be read, or the program not be run.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Checks a content, read from its start. `reopen` gives it to a program as standard input.
///
/// # Errors
/// [`CheckError::Invalid`] if it is not what it must be.
pub fn check(
    validation: &Validation,
    content: impl Read,
    reopen: impl FnOnce() -> std::io::Result<OwnedFd>,
) -> Result<(), CheckError> {
    match validation {
        Validation::None => Ok(()),
        Validation::Json => json(content),
        Validation::JsonLines => json_lines(content),
        Validation::Csv => csv(content),
        Validation::Command { command, timeout } => program(command, *timeout, reopen()?),
    }
}

/// Passes text on, and fails where it is not UTF-8: serde_json does not look at strings that nobody
/// asks for.
struct Utf8<R> {
    from: R,
    /// The beginning of a character whose rest has not been read.
    begun: Vec<u8>,
    line: usize,
    column: usize,
    nesting: Nesting,
}

impl<R> Utf8<R> {
    fn new(from: R) -> Self {
        Self {
            from,
            begun: Vec::new(),
            line: 1,
            column: 0,
            nesting: Nesting::default(),
        }
    }
}

/// How deep in a JSON document one is: its parser takes a byte of memory for each level.
#[derive(Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Goes on by a byte; false if that is too deep.
    fn goes_on(&mut self, byte: u8) -> bool {
        match (self.in_string, byte) {
            _ if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'[' | b'{') => self.depth += 1,
            (false, b']' | b'}') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth <= DEEPEST
    }
}

impl<R: Read> Read for Utf8<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.begun.extend_from_slice(&buffer[..read]);
        let (valid, broken) = match std::str::from_utf8(&self.begun) {
            Ok(text) => (text.len(), false),
            Err(error) => {
                let cut_off = error.error_len().is_none() && read > 0;
                (error.valid_up_to(), !cut_off)
            }
        };
        for byte in self.begun.drain(..valid) {
            match byte {
                b'\n' => (self.line, self.column) = (self.line + 1, 0),
                _ => self.column += 1,
            }
            if !self.nesting.goes_on(byte) {
                return Err(std::io::Error::other(Invalid::At {
                    line: self.line,
                    column: self.column,
                    what: format!("more than {DEEPEST} levels"),
                }));
            }
        }
        match broken {
            true => Err(std::io::Error::other(Invalid::At {
                line: self.line,
                column: self.column + 1,
                what: String::from("not UTF-8"),
            })),
            false => Ok(read),
        }
    }
}

fn json(content: impl Read) -> Result<(), CheckError> {
    document(content).map_err(|error| json_error(error, 0))
}

/// Reads one JSON document, and nothing after it.
fn document(content: impl Read) -> serde_json::Result<()> {
    let content = BufReader::new(Utf8::new(content));
    let mut document = serde_json::Deserializer::from_reader(content);
    let IgnoredAny = serde::Deserialize::deserialize(&mut document)?;
    document.end()
}

fn json_error(error: serde_json::Error, lines_before: usize) -> CheckError {
    if error.is_io() {
        return match std::io::Error::from(error).downcast::<Invalid>() {
            Ok(Invalid::At { line, column, what }) => {
                let line = lines_before + line;
                Invalid::At { line, column, what }.into()
            }
            Ok(refused) => refused.into(),
            Err(error) => error.into(),
        };
    }
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    Invalid::At {
        line: lines_before + error.line(),
        column: error.column(),
        what: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
    }
    .into()
}

/// The rest of a line, without its end.
struct Line<'a, R> {
    from: &'a mut R,
    ended: bool,
    /// There was nothing but white space.
    blank: bool,
}

impl<R: BufRead> Read for Line<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let there = self.from.fill_buf()?;
        let there = &there[..there.len().min(buffer.len())];
        let end = there.iter().position(|byte| *byte == b'\n');
        let part = &there[..end.unwrap_or(there.len())];
        buffer[..part.len()].copy_from_slice(part);
        self.blank &= part.trim_ascii().is_empty();
        let read = part.len();
        self.ended = end.is_some() || read == 0;
        self.from.consume(read + usize::from(end.is_some()));
        Ok(read)
    }
}

fn json_lines(content: impl Read) -> Result<(), CheckError> {
    let mut content = BufReader::new(content);
    let mut number = 0;
    while !content.fill_buf()?.is_empty() {
        // Of one line, so that a document that goes on in the next is found out.
        let mut line = Line {
            from: &mut content,
            ended: false,
            blank: true,
        };
        match document(&mut line) {
            Err(error) if !(error.is_eof() && line.blank) => {
                return Err(json_error(error, number));
            }
            _ => number += 1,
        }
    }
    Ok(())
}

/// Looks at one field after the other, since a record may be as long as the file.
fn csv(content: impl Read) -> Result<(), CheckError> {
    let mut content = BufReader::new(content);
    let mut reader = csv_core::Reader::new();
    let mut field = [0; 4096];
    let mut expected = None;
    let (mut line, mut fields) = (reader.line(), 0);
    loop {
        let (result, taken, _) = reader.read_field(content.fill_buf()?, &mut field);
        content.consume(taken);
        let record_end = match result {
            ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => continue,
            ReadFieldResult::Field { record_end } => record_end,
            ReadFieldResult::End => return Ok(()),
        };
        fields += 1;
        if !record_end {
            continue;
        }
        let wanted = *expected.get_or_insert(fields);
        if fields != wanted {
            let line = usize::try_from(line).unwrap_or(usize::MAX);
            let what = format!("{fields} fields, where the first record has {wanted}");
            let column = 1;
            return Err(Invalid::At { line, column, what }.into());
        }
        (line, fields) = (reader.line(), 0);
    }
}

fn program(command: &[String], timeout: Duration, stdin: OwnedFd) -> Result<(), CheckError> {
    let Some((name, args)) = command.split_first() else {
        return Ok(());
    };
    let mut child = Command::new(name)
        .args(args)
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(|error| std::io::Error::new(error.kind(), format!("{name}: {error}")))?;
    let said = listen(child.stderr.take());
    let Some(status) = wait(&mut child, timeout)? else {
        let timeout = humantime::format_duration(timeout);
        let what = format!("{name} did not answer within {timeout}");
        return Err(Invalid::Refused(what).into());
    };
    if status.success() {
        return Ok(());
    }
    // Something it started may have its standard error still.
    let said = said.recv_timeout(LAST_WORDS).unwrap_or_default();
    let said: Vec<&str> = said.lines().map(str::trim).collect();
    let what = format!("{name} refuses it ({status}): {}", said.join("; "));
    Err(Invalid::Refused(what).into())
}

/// The beginning of what a program says. It is read to its end by a thread of its own, since a
/// program that says much waits for its reader.
fn listen(stderr: Option<std::process::ChildStderr>) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let Some(mut stderr) = stderr else { return };
        let mut said = Vec::new();
        let _ = (&mut stderr).take(SAID).read_to_end(&mut said);
        let _ = send.send(String::from_utf8_lossy(&said).into_owned());
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
    });
    receive
}

/// Waits for the end of a program; kills it, and what it started, when its time is up.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    fn verdict(validation: &Validation, content: &[u8]) -> Result<(), String> {
        let reopen = || {
            let mut file = tempfile::tempfile()?;
            std::io::Write::write_all(&mut file, content)?;
            file.rewind()?;
            Ok(OwnedFd::from(file))
        };
        check(validation, content, reopen).map_err(|error| error.to_string())
    }

    fn json(content: &str) -> Result<(), String> {
        verdict(&Validation::Json, content.as_bytes())
    }

    #[test]
    fn json_documents_are_valid() {
        for content in ["{}", " [1, 2.5e3, \"x\\u00e9\", null]\n", "\"\"", "0"] {
            assert_eq!(json(content), Ok(()), "{content}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(json(&deep), Ok(()));
    }

    #[test]
    fn what_is_no_json_document_is_told_by_line_and_column() {
        for (content, expected) in [
            ("", "line 1, column 0: EOF while parsing a value"),
            ("{\"a\": 1,\n \"b\" 2}", "line 2, column 6: expected `:`"),
            ("{} {}", "line 1, column 4: trailing characters"),
            ("[1, 2", "line 1, column 5: EOF while parsing a list"),
            ("[NaN]", "line 1, column 2: expected value"),
            ("[1,]", "line 1, column 4: "),
            ("'a'", "line 1, column 1: expected value"),
            ("[01]", "line 1, column 3: invalid number"),
        ] {
            let said = json(content).expect_err(content);
            assert!(said.starts_with(expected), "{content}: {said}");
        }
    }

    #[test]
    fn json_is_utf_8() {
        let json = |content: &[u8]| verdict(&Validation::Json, content);
        // A character across the end of what is read at once.
        for spaces in 8185..8195 {
            let text = format!("{}\"\u{20ac}\u{1f600}\"", " ".repeat(spaces));
            assert_eq!(json(text.as_bytes()), Ok(()), "{spaces}");
        }
        for (content, place) in [
            (&b"[1,\n \"\xff\"]"[..], "line 2, column 3: not UTF-8"),
            (b"\"\xe2\x82", "line 1, column 2: not UTF-8"),
            (b"\"\xe2\x82\"", "line 1, column 2: not UTF-8"),
        ] {
            assert_eq!(json(content), Err(place.to_owned()));
        }
        let lines = verdict(&Validation::JsonLines, b"{}\n\"\xff\"\n");
        assert_eq!(lines, Err(String::from("line 2, column 2: not UTF-8")));
    }

    #[test]
    fn json_is_read_in_bounded_memory() {
        // A document of 16 MiB that is never in memory whole.
        let numbers = std::io::repeat(b'1').take(16 << 20);
        let document = (&b"[\""[..]).chain(numbers).chain(&b"\"]"[..]);
        check(&Validation::Json, document, || unreachable!("no program")).expect("valid");
    }

    #[test]
    fn json_lines_have_a_document_in_every_line() {
        let lines = |content: &str| verdict(&Validation::JsonLines, content.as_bytes());
        assert_eq!(lines(""), Ok(()));
        assert_eq!(lines("{}\n\n[1]\n3"), Ok(()));
        let said = lines("{}\n{\"a\":\n1}\n").expect_err("a document of two lines");
        assert!(said.starts_with("line 2, column"), "{said}");
        assert!(lines("1 2\n").is_err());
    }

    #[test]
    fn whatever_is_read_is_checked_in_bounded_memory() {
        // Each of these would take as much memory as it is long, if its parser had its way.
        let long = |byte, bytes| std::io::repeat(byte).take(bytes);
        let nowhere = || unreachable!("no program");
        let deep = check(&Validation::Json, long(b'[', 1 << 40), nowhere);
        let said = deep.expect_err("too deep").to_string();
        assert_eq!(said, "line 1, column 1000001: more than 1000000 levels");
        let strings = (&b"[\"[[[[{\\\"["[..])
            .chain(long(b'[', 2_000_000))
            .chain(&b"\"]"[..]);
        check(&Validation::Json, strings, nowhere).expect("these are no levels");
        let zeros = check(&Validation::JsonLines, long(0, 1 << 40), nowhere);
        let said = zeros.expect_err("no document").to_string();
        assert_eq!(said, "line 1, column 1: expected value");
        check(&Validation::Csv, long(b'x', 16 << 20), nowhere).expect("one field");
        check(&Validation::Csv, long(b',', 16 << 20), nowhere).expect("one record");
    }

    #[test]
    fn csv_records_have_as_many_fields_as_the_first() {
        let csv = |content: &str| verdict(&Validation::Csv, content.as_bytes());
        assert_eq!(csv(""), Ok(()));
        assert_eq!(csv("a,b\n1,\"x,\ny\"\n2,3\n"), Ok(()));
        let said = csv("a,b\n1,2\n3\n").expect_err("a field is missing");
        assert_eq!(
            said,
            "line 3, column 1: 1 fields, where the first record has 2"
        );
    }

    #[test]
    fn a_program_is_given_the_content_and_decides() {
        let run = |script: &str, timeout| Validation::Command {
            command: ["sh", "-c", script].map(String::from).to_vec(),
            timeout,
        };
        let minute = Duration::from_secs(60);
        assert_eq!(verdict(&run("grep -q good", minute), b"good"), Ok(()));
        let said = verdict(&run("cat >&2; exit 3", minute), b"bad\nthing").expect_err("refused");
        assert_eq!(said, "sh refuses it (exit status: 3): bad; thing");
        let noisy = run("head -c 1000000 /dev/zero >&2; sleep 60 & exit 1", minute);
        assert!(verdict(&noisy, b"").is_err());
        let said = verdict(&run("sleep 60", Duration::from_millis(20)), b"").expect_err("late");
        assert_eq!(said, "sh did not answer within 20ms");
        let none = Validation::Command {
            command: vec![String::from("/nowhere/check")],
            timeout: minute,
        };
        let said = verdict(&none, b"").expect_err("no such program");
        assert!(said.starts_with("/nowhere/check: No such file"), "{said}");
    }
}
