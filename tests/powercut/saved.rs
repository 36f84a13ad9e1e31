//! A recording in a file, so that one power cut of it can be looked at again.

use crate::filesystem::Kind;
use crate::log::{BLOCK, Entry};
use crate::recording::{Recording, word};
use crate::settings::durability;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

const MAGIC: &str = "latchfs-powercut-1";

/// Writes a recording: a line, the blocks of the image that are not zero, the log.
///
/// # Errors
/// Those of the disk it is written to.
pub fn save(recording: &Recording, path: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let (kind, durability) = (recording.kind.name(), word(recording.durability));
    writeln!(out, "{MAGIC} {kind} {durability}")?;
    let blocks = recording.base.chunks(BLOCK).enumerate();
    for (number, block) in blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
        write(&mut out, b'B', (number * BLOCK) as u64, block)?;
    }
    for entry in &recording.log {
        match entry {
            Entry::Write(at, bytes) => write(&mut out, b'W', *at, bytes)?,
            Entry::Zero(at, length) => write(&mut out, b'Z', *at, &length.to_le_bytes())?,
            Entry::Flush => write(&mut out, b'F', 0, &[])?,
            Entry::Mark(mark) => write(&mut out, b'M', 0, mark.as_bytes())?,
        }
    }
    out.flush()
}

fn write(out: &mut impl Write, tag: u8, at: u64, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&[tag])?;
    out.write_all(&at.to_le_bytes())?;
    out.write_all(&(bytes.len() as u64).to_le_bytes())?;
    out.write_all(bytes)
}

/// Reads it.
///
/// # Errors
/// `InvalidData` if it is none.
pub fn load(path: &Path) -> io::Result<Recording> {
    let mut from = BufReader::new(File::open(path)?);
    let mut line = String::new();
    from.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let parsed = match words[..] {
        [MAGIC, kind, word] => Kind::parse(kind).zip(durability(word)),
        _ => None,
    };
    let (kind, durability) = parsed.ok_or(io::ErrorKind::InvalidData)?;
    let mut recording = Recording {
        kind,
        durability,
        base: vec![0; kind.size()],
        log: Vec::new(),
    };
    while !from.fill_buf()?.is_empty() {
        let mut head = [0; 17];
        from.read_exact(&mut head)?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight"));
        let mut bytes = vec![0; number(9) as usize];
        from.read_exact(&mut bytes)?;
        let at = number(1);
        recording.log.push(match head[0] {
            b'B' => {
                recording.base[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                continue;
            }
            b'W' => Entry::Write(at, bytes.into()),
            b'Z' => Entry::Zero(at, u64::from_le_bytes(bytes[..].try_into().expect("eight"))),
            b'F' => Entry::Flush,
            _ => Entry::Mark(String::from_utf8_lossy(&bytes).into_owned()),
        });
    }
    Ok(recording)
}
