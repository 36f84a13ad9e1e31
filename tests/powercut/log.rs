//! What a disk was asked to do, in order, and what a power cut leaves of it.

use crate::random::Random;
use std::collections::HashMap;
use std::sync::Arc;

/// What a disk writes as a whole or not at all, in bytes; what the images are made of here.
pub const BLOCK: usize = 4096;

/// One thing that happened to the recording disk.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Bytes were written at an offset.
    Write(u64, Arc<[u8]>),
    /// A range became zeros.
    Zero(u64, u64),
    /// Everything written before is on the disk for good.
    Flush,
    /// Something that the workload has told.
    Mark(String),
}

/// A whole image.
pub type Image = Vec<u8>;

/// An image with changes that are not in it.
#[derive(Clone, Default)]
pub struct Overlay {
    base: Arc<Image>,
    blocks: HashMap<u64, Box<[u8; BLOCK]>>,
}

impl Overlay {
    /// The image as it is.
    pub fn new(base: Arc<Image>) -> Self {
        let blocks = HashMap::new();
        Self { base, blocks }
    }

    /// Reads a range, as far as it is in the image.
    pub fn read(&self, from: u64, length: usize) -> Vec<u8> {
        let to = (from + length as u64).min(self.base.len() as u64);
        let mut bytes = Vec::with_capacity(length);
        for (block, start, end) in pieces(from, to) {
            let whole = block as usize * BLOCK;
            match self.blocks.get(&block) {
                Some(changed) => bytes.extend_from_slice(&changed[start..end]),
                None => bytes.extend_from_slice(&self.base[whole + start..whole + end]),
            }
        }
        bytes
    }

    /// Writes bytes at an offset.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (block, start, end) in pieces(at, at + bytes.len() as u64) {
            let (now, later) = rest.split_at(end - start);
            self.block(block)[start..end].copy_from_slice(now);
            rest = later;
        }
    }

    /// Makes a range zeros.
    pub fn zero(&mut self, from: u64, length: u64) {
        let to = (from + length).min(self.base.len() as u64);
        for (block, start, end) in pieces(from, to) {
            self.block(block)[start..end].fill(0);
        }
    }

    fn block(&mut self, block: u64) -> &mut [u8; BLOCK] {
        let base = &self.base;
        self.blocks.entry(block).or_insert_with(|| {
            let start = block as usize * BLOCK;
            let mut copy = Box::new([0; BLOCK]);
            copy.copy_from_slice(&base[start..start + BLOCK]);
            copy
        })
    }

    /// Does what is told, if it is told to the disk.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Write(at, bytes) => self.write(*at, bytes),
            Entry::Zero(from, length) => self.zero(*from, *length),
            Entry::Flush | Entry::Mark(_) => {}
        }
    }

    /// Does of `entries`, none of which a flush has followed, what happens to have reached the disk
    /// before the power went: nothing, everything, or some of the blocks. The order of what is written to
    /// one block stays.
    pub fn apply_some(&mut self, entries: &[Entry], random: &mut Random) {
        // How many of eight.
        let share = *random.pick(&[0, 8, 4, 4, 7, 1]);
        for entry in entries {
            match entry {
                Entry::Write(at, bytes) => {
                    let mut rest = &bytes[..];
                    let mut from = *at;
                    for (_, start, end) in pieces(*at, at + bytes.len() as u64) {
                        let (piece, later) = rest.split_at(end - start);
                        if random.below(8) < share {
                            self.write(from, piece);
                        }
                        from += piece.len() as u64;
                        rest = later;
                    }
                }
                Entry::Zero(from, length) if random.below(8) < share => self.zero(*from, *length),
                Entry::Zero(..) | Entry::Flush | Entry::Mark(_) => {}
            }
        }
    }
}

/// The blocks of a range: which one, and from where to where in it.
fn pieces(from: u64, to: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let size = BLOCK as u64;
    (from / size..to.div_ceil(size)).map(move |block| {
        let start = from.saturating_sub(block * size);
        let end = (to - block * size).min(size);
        (block, start as usize, end as usize)
    })
}

/// Does to an image what is told.
pub fn apply(image: &mut Image, entry: &Entry) {
    match entry {
        Entry::Write(at, bytes) => {
            let at = *at as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Entry::Zero(from, length) => image[*from as usize..(from + length) as usize].fill(0),
        Entry::Flush | Entry::Mark(_) => {}
    }
}

/// How many of the first `position` entries are on the disk for good: all up to the last flush; up to one
/// before it if the disk lies about its last `ignored` flushes.
pub fn durable(log: &[Entry], position: usize, ignored: usize) -> usize {
    let is_flush = |(_, entry): &(usize, &Entry)| matches!(entry, Entry::Flush);
    let mut flushes = log[..position].iter().enumerate().rev().filter(is_flush);
    flushes.nth(ignored).map_or(0, |(at, _)| at + 1)
}

#[test]
fn a_range_is_taken_apart_at_the_borders_of_blocks() {
    let all: Vec<_> = pieces(4000, 12_289).collect();
    let expected = [(0, 4000, 4096), (1, 0, 4096), (2, 0, 4096), (3, 0, 1)];
    assert_eq!(all, expected);
    assert_eq!(pieces(4096, 4096).count(), 0);
}
