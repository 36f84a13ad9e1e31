"""A program that reads all files of a stage, in one of the ways that programs read, and judges each read.

A read is right if it is one whole version, none older than what a writer was told is committed before the
open, none older than this program has seen before, and none that its writer had not begun to commit.
"""

import errno
import mmap
import os
import subprocess
import sys
import time
import zlib

import board
import cast
import versions
from program import Program


class Reader(Program):
    """The ways of reading."""

    def __init__(self):
        super().__init__("reader")
        files = cast.files_of(self.roles)
        self.versioned = [file for file in files if file.form != "log"]
        self.logs = [file for file in files if file.form == "log"]
        self.seen = {}
        self.followed = None

    def main(self):
        """Until it is stopped."""
        while True:
            self.pause()
            if self.what == "follow":
                if not self.attempt("follow", self.follow, (errno.ENOENT,)):
                    self.let_go()
            else:
                self.read()

    # --- versions

    def read(self):
        """One file, opened, read, judged."""
        file = self.random.choice(self.versioned)
        slots = cast.writers_of(self.roles, file.name)
        parts = [self.board.programs[slot] for slot in slots]
        floor = max(self.board.acknowledged(slots), self.seen.get(file.name, 0))
        if file.fickle:
            # An older one may be put back.
            floor = 0
        absent = [part[board.ABSENT] for part in parts]
        name = cast.second_name(file) if file.linked and self.random.random() < 0.5 else file.name
        read = getattr(self, f"by_{self.what}")
        found = None

        def act():
            nonlocal found
            found = self.reach(file, read, name)
        if not self.attempt(f"read {name}", act, self.excused(file, parts, absent)):
            return
        if found is None:
            return
        self.part.add(board.READS)
        try:
            said = versions.parse(file.name, file.form, found)
        except versions.Torn as torn:
            self.wrong(board.TORN, "torn", f"{name}: {torn}")
            return
        if said.number < floor:
            self.wrong(board.OLD, "old", f"{name}: {said}, but {floor} was there before")
        if said.writer not in slots or said.number > self.board.programs[said.writer][board.CLOSING]:
            self.wrong(board.LEAKED, "leaked", f"{name}: {said}, which was not closed")
        self.seen[file.name] = max(floor, said.number)

    def excused(self, file, parts, absent):
        """Asked for after the call has failed: what it may fail with."""
        reader = self

        class Excused:
            """ENOENT while the file may be missing."""

            def __contains__(self, number):
                if number == errno.EAGAIN:
                    # R1: it would have to wait for the first version of a file that was removed, or for
                    # the rewriting of one that has two names.
                    return reader.what == "nonblock" and (file.gone or file.fickle or file.linked)
                if number != errno.ENOENT:
                    return False
                now = [part[board.ABSENT] for part in parts]
                return file.fickle or now != absent or any(n % 2 for n in now)
        return Excused()

    def wrong(self, counter, kind, detail):
        """A read that is not right."""
        self.part.add(counter)
        self.violation(kind, detail)

    @staticmethod
    def by_whole(path):
        """open, read, close."""
        with open(path, "rb") as file:
            return file.read()

    def by_pread(self, path):
        """In pieces, from the end, slowly, with the size that fstat told at first."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            pieces = []
            for end in range(size, 0, -16384):
                pieces.append(os.pread(file, min(16384, end), max(0, end - 16384)))
                if self.random.random() < 0.05:
                    time.sleep(0.005)
            if os.fstat(file).st_size != size:
                raise OSError(errno.ERANGE, "the size of an open version has changed", path)
            return b"".join(reversed(pieces))
        finally:
            os.close(file)

    def by_mmap(self, path):
        """A mapping, looked at twice, some time apart."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return b""
            with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapping:
                first = mapping[:]
                time.sleep(self.random.choice((0, 0.01, 0.1)))
                if mapping[:] != first:
                    self.wrong(board.TORN, "torn", f"{path}: what is mapped has changed")
                return first

    @staticmethod
    def by_nonblock(path):
        """As tar opens: the last version, whoever writes the next."""
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(file, "rb") as opened:
            return opened.read()

    def by_cat(self, path):
        """Another program."""
        before = self.stage[board.GENERATION]
        done = subprocess.run(["cat", path], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout
        # cat says why, but not by a number.
        said = done.stderr.decode(errors="replace").strip()
        if "No such file" in said:
            raise FileNotFoundError(errno.ENOENT, said)
        down = before % 2 or self.stage[board.GENERATION] != before
        raise OSError(errno.ENOTCONN if down else errno.EBADMSG, said)

    # --- logs

    def follow(self):
        """Reads on where it was. What it has read of a log never changes, and no record is in pieces."""
        generation = self.stage[board.GENERATION]
        if self.followed and self.followed["generation"] != generation:
            self.let_go()
        if not self.followed:
            log = self.random.choice(self.logs)
            file = os.open(os.path.join(self.work, log.name), os.O_RDONLY | os.O_CLOEXEC)
            self.followed = {
                "log": log, "file": file, "generation": generation, "at": 0, "crc": 0, "last": {}, "rounds": 0}
        state = self.followed
        data = b""
        while True:
            piece = os.pread(state["file"], 1 << 18, state["at"] + len(data))
            data += piece
            if not piece:
                break
        self.part.add(board.READS)
        self.records(state, data)
        state["rounds"] += 1
        if state["rounds"] % 20 == 0:
            self.compare(state)
        if state["rounds"] >= 60:
            self.let_go()

    def records(self, state, data):
        """Whole ones, each writer's in the order in which it wrote them."""
        if data and not data.endswith(b"\n"):
            self.wrong(board.TORN, "torn", f"{state['log'].name}: ends in a part of a record {data[-80:]!r}")
            data = data[:data.rfind(b"\n") + 1]
        for line in data.splitlines():
            try:
                said = versions.parse_record(state["log"].name, line)
            except versions.Torn as torn:
                self.wrong(board.TORN, "torn", torn)
                continue
            last = state["last"].get(said.writer, 0)
            if said.number <= last:
                self.wrong(board.OLD, "old", f"{said} after {last}")
            state["last"][said.writer] = said.number
        state["at"] += len(data)
        state["crc"] = zlib.crc32(data, state["crc"])

    def compare(self, state):
        """Once more from the beginning: the same bytes."""
        crc, at = 0, 0
        while at < state["at"]:
            piece = os.pread(state["file"], min(1 << 18, state["at"] - at), at)
            if not piece:
                break
            crc, at = zlib.crc32(piece, crc), at + len(piece)
        if (crc, at) != (state["crc"], state["at"]):
            self.wrong(board.TORN, "torn", f"{state['log'].name}: its first {state['at']} bytes have changed")

    def let_go(self):
        """Closes what it follows."""
        if self.followed:
            state, self.followed = self.followed, None
            os.close(state["file"])


if __name__ == "__main__":
    sys.exit(Reader().main())
