"""A program that writes one file again and again, in one of the ways that programs write.

Outside of the mount it notes which version it begins, which it is about to commit, and which it was told
is committed. It may be killed at any moment; the next one of its slot goes on with the next number.
"""

import contextlib
import errno
import json
import mmap
import os
import subprocess
import sys
import time

import board
import cast
import versions
from program import Program

# Renamed and removed by others, a file is gone, or there again, when one looks.
RACES = (errno.ENOENT, errno.EEXIST)
RECORDS_OF_A_HANDLE = 60


class Writer(Program):
    """The ways of writing, and the numbers."""

    def __init__(self):
        super().__init__("writer")
        self.role = self.roles[self.slot]
        self.file = cast.FILES[self.role.file]
        self.log = None

    def main(self):
        """Until it is stopped, or killed."""
        write = getattr(self, self.role.kind)
        also = RACES if self.file.fickle else ()
        self.look()
        while True:
            self.pause()
            self.attempt(self.role.kind, write, also)

    # --- numbers

    def begin(self, number=None):
        """The number of the next version; never one that was begun before by this slot."""
        number = self.part[board.BEGUN] + 1 if number is None else number
        self.part[board.BEGUN] = number
        return number

    def closing(self, number):
        """From now on it may be seen."""
        self.part[board.CLOSING] = number

    def acked(self, number):
        """Somebody was told that it is committed: it must not be lost."""
        self.part[board.ACKED] = max(self.part[board.ACKED], number)
        self.part.add(board.COMMITS)

    def content(self, number, length=None):
        """Of the next version; most are small, some are larger than one write."""
        if length is None:
            length = self.random.choice((500, 3000, 3000, 20_000, 20_000, 60_000, 400_000))
        return versions.doc(self.file.name, self.slot, number, length)

    def think(self):
        """In the middle of it, where it is killed most likely."""
        time.sleep(self.random.choice((0, 0, 0.002, 0.01, 0.05)))

    def look(self):
        """What the one before me left: not the version that it was killed in the middle of."""
        if self.role.kind == "append" and self.part[board.BEGUN] > self.part[board.ACKED]:
            self.gap(self.part[board.BEGUN])
        if self.role.kind in ("append", "count"):
            return
        found = None

        def read():
            nonlocal found
            with self.reach(self.file, lambda path: open(path, "rb")) as file:
                found = file.read()
        missing = (errno.ENOENT,) if self.missing_allowed() else ()
        if not self.attempt("look", read, missing):
            return
        try:
            number = versions.parse(self.file.name, self.file.form, found).number
        except versions.Torn as torn:
            self.violation("torn", f"after a kill: {torn}")
            return
        if number < self.part[board.ACKED] and not self.file.fickle:
            self.violation("lost", f"after a kill: {number}, acknowledged was {self.part[board.ACKED]}")
        if number > self.part[board.CLOSING]:
            self.violation("leaked", f"after a kill: {number}, which was never closed")

    def missing_allowed(self):
        """Whether the file may not be there."""
        return self.file.fickle or self.part[board.ABSENT] % 2

    def note(self, kind, number):
        """A number for the checker, in a file of this slot."""
        with open(os.path.join(self.notes, f"{kind}-{self.slot}"), "a", encoding="ascii") as file:
            file.write(f"{number}\n")

    def gap(self, number):
        """This one was begun, and nobody was told that it is there."""
        self.note("gaps", number)

    # --- ways to write

    def write_json(self, file, number):
        """As a program does that has heard nothing of any of this."""
        length = self.random.choice((500, 3000, 20_000, 60_000, 400_000))
        document = versions.json_doc(self.file.name, self.slot, number, length)
        json.dump(document, file, indent=1 if length > 3000 else None)

    def overwrite(self):
        """open("w"), write, close."""
        number = self.begin()
        with self.reach(self.file, lambda path: open(path, "w", encoding="ascii")) as file:
            if self.file.form == "json":
                self.write_json(file, number)
                file.flush()
            else:
                text = self.content(number).decode()
                file.write(text[:len(text) // 2])
                file.flush()
                self.think()
                file.write(text[len(text) // 2:])
            self.think()
            self.closing(number)
        self.acked(number)

    def update(self):
        """open("r+"), change all of it, piece by piece, in any order, close."""
        number = self.begin()
        data = self.content(number, versions.FIXED - versions.HEADER)
        with self.reach(self.file, lambda path: open(path, "r+b", buffering=0)) as file:
            pieces = list(range(0, len(data), 8192))
            self.random.shuffle(pieces)
            for count, at in enumerate(pieces):
                file.seek(at)
                file.write(data[at:at + 8192])
                if count == len(pieces) // 2:
                    self.think()
            self.closing(number)
        self.acked(number)

    def count(self):
        """Reads which version there is, and writes the next one: three programs do so with one file."""
        with self.reach(self.file, lambda path: open(path, "r+b")) as file:
            try:
                number = versions.parse(self.file.name, "doc", file.read()).number
            except versions.Torn as torn:
                self.violation("torn", f"to count on: {torn}")
                number = self.board.acknowledged(cast.writers_of(self.roles, self.file.name))
            number = self.begin(number + 1)
            data = self.content(number, 3000)
            file.seek(0)
            file.write(data[:1000])
            file.flush()
            self.think()
            file.write(data[1000:])
            file.truncate()
            self.closing(number)
        self.note("counted", number)
        self.acked(number)

    def careful(self):
        """A temporary file, fsync, rename, fsync of the directory."""
        number = self.begin()

        def write(path):
            temporary = f"{path}.new"
            with open(temporary, "w", encoding="ascii") as file:
                if self.file.form == "json":
                    self.write_json(file, number)
                else:
                    file.write(self.content(number).decode())
                file.flush()
                os.fsync(file.fileno())
            self.think()
            self.closing(number)
            os.rename(temporary, path)
            directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        self.reach(self.file, write)
        self.acked(number)

    def make(self):
        """Creates a file and moves it into place; or removes the file and creates it anew."""
        number = self.begin()
        data = self.content(number)
        path = os.path.join(self.work, self.file.name)
        removed = self.random.random() < 0.3
        if removed:
            if self.part[board.ABSENT] % 2 == 0:
                self.part.add(board.ABSENT)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            name = path
        else:
            name = path + ".new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        with open(name, "xb", buffering=0) as file:
            file.write(data[:200])
            self.think()
            file.write(data[200:])
            if removed:
                self.closing(number)
        if not removed:
            self.closing(number)
            os.rename(name, path)
        self.acked(number)
        if self.part[board.ABSENT] % 2:
            self.part.add(board.ABSENT)

    def sync(self):
        """Three versions by one descriptor, with an fsync after each."""
        with self.reach(self.file, lambda path: open(path, "r+b", buffering=0)) as file:
            for last in (False, False, True):
                number = self.begin()
                data = self.content(number)
                file.seek(0)
                file.write(data[:300])
                self.think()
                file.write(data[300:])
                file.truncate(len(data))
                self.closing(number)
                if not last:
                    os.fsync(file.fileno())
                    self.acked(number)
        self.acked(number)

    def shell(self):
        """The redirection of a shell, which looks at no error of its close."""
        number = self.begin()
        text = self.content(number, 3000).decode()
        before = self.stage[board.GENERATION]
        # The shell closes when it ends: from here on the version may come to be.
        self.closing(number)
        script = 'exec 2>&1 && { printf %s "$2"; sleep "$4" & wait; printf %s "$3"; } > "$1"'
        middle = len(text) // 2
        done = subprocess.run(
            ["sh", "-c", script, "sh", os.path.join(self.work, self.file.name), text[:middle], text[middle:],
             self.random.choice(("0", "0.01"))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        down = before % 2 or self.stage[board.GENERATION] != before
        if down:
            self.part.add(board.EXPECTED + errno.EIO, done.returncode != 0)
        elif done.returncode != 0:
            self.violation("error", f"shell: {done.stdout}")
        else:
            self.acked(number)

    def map(self):
        """A shared mapping, and msync."""
        number = self.begin()
        data = self.content(number, versions.FIXED - versions.HEADER)
        with self.reach(self.file, lambda path: open(path, "r+b", buffering=0)) as file:
            with mmap.mmap(file.fileno(), versions.FIXED) as mapping:
                middle = len(data) // 2
                mapping[middle:] = data[middle:]
                self.think()
                mapping[:middle] = data[:middle]
                self.closing(number)
                mapping.flush()
                self.acked(number)

    def append(self):
        """A record, by a descriptor that stays open for some time."""
        generation = self.stage[board.GENERATION]
        if self.log and (self.log[1] != generation or self.log[2] == 0):
            self.let_go()
        if not self.log:
            path = os.path.join(self.work, self.file.name)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.log = [file, generation, RECORDS_OF_A_HANDLE]
        number = self.begin()
        self.closing(number)
        data = versions.record(self.file.name, self.slot, number, self.random.choice((40, 200, 3000)))
        try:
            written = os.write(self.log[0], data)
        except OSError:
            self.gap(number)
            self.let_go()
            raise
        if written != len(data):
            self.violation("torn", f"a record of {len(data)} bytes: write() took {written}")
        self.log[2] -= 1
        self.acked(number)

    def let_go(self):
        """Closes the log."""
        if self.log:
            (file, generation, _), self.log = self.log, None
            if generation == self.stage[board.GENERATION]:
                self.attempt("close of a log", lambda: os.close(file))
            else:
                with contextlib.suppress(OSError):
                    os.close(file)


if __name__ == "__main__":
    sys.exit(Writer().main())
