"""What the programs of a stage tell each other, in memory that they share and that survives each of them.

It is a file outside of the mount, mapped by all. A number is written by one program only, whole (8 bytes,
aligned), and stays when that program is killed.
"""

import json
import mmap
import os
import time

WORDS = 512  # of each program's part
PROGRAMS = 64

# Of the stage. GENERATION: even while it is mounted, odd from before that ends until it is mounted again.
# GATE: not 0 while all programs shall close what they have open, and wait.
GENERATION, STOP, GATE, FICKLE = range(4)
# Of a program. BEGUN: the newest version it began. CLOSING: the newest that it was going to commit: a later
# one can't be a file. ACKED: the newest whose close() or fsync() said that it is one. ABSENT: odd while
# its file may be missing.
(BEGUN, CLOSING, ACKED, ABSENT, PARKED, COMMITS, READS, TORN, OLD, LEAKED, GONE, SLOWEST, WAITING) = range(13)
EXPECTED, UNEXPECTED = 64, 256  # two tables of counts by errno


class Part:
    """The numbers of one program; index 0 to WORDS."""

    def __init__(self, words, first):
        self.words, self.first = words, first

    def __getitem__(self, index):
        return self.words[self.first + index]

    def __setitem__(self, index, value):
        self.words[self.first + index] = value

    def add(self, index, value=1):
        """One program only writes its part: no two add at once."""
        self.words[self.first + index] += value


class Board:
    """The mapped file: a part of the stage, then one of each program."""

    def __init__(self, path, create=False):
        size = (PROGRAMS + 1) * WORDS * 8
        with open(path, "w+b" if create else "r+b") as file:
            if create:
                file.truncate(size)
            self.map = mmap.mmap(file.fileno(), size)
        words = memoryview(self.map).cast("q")
        self.stage = Part(words, 0)
        self.programs = [Part(words, (n + 1) * WORDS) for n in range(PROGRAMS)]

    def acknowledged(self, slots):
        """The newest version of a file, by its writers, that somebody was told is there."""
        return max((self.programs[slot][ACKED] for slot in slots), default=0)


class Violations:
    """Lines of JSON that all programs of all stages append to one file: what must not be."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(self, kind, who, detail, moment="at work"):
        """One line, by one write."""
        line = {
            "when": time.strftime("%H:%M:%S"), "kind": kind, "who": who, "moment": moment, "detail": str(detail)[:500]}
        os.write(self.fd, (json.dumps(line) + "\n").encode())

    def read(self):
        """All of them."""
        with open(self.path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
