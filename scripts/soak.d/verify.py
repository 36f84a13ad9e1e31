"""Looks into BACKING while nothing writes there: every file whole, nothing lost that was acknowledged,
nothing left behind by latchfs."""

import os

import board
import cast
import versions


class Verifier:
    """Remembers what it has seen of logs whose old parts are removed."""

    def __init__(self, backing, notes, roles, stage_board, wrong):
        self.backing, self.notes, self.roles, self.board = backing, notes, roles, stage_board
        self.wrong = wrong
        self.high = {}
        self.files = 0

    def check(self, when, recovered=True):
        """All of it. Not recovered: what a crash has left, before latchfs has put anything right; files that
        keep their inode and logs may then be half done. Returns the old logs, which may be removed."""
        old = []
        for file in cast.files_of(self.roles):
            if file.form == "log":
                if recovered:
                    old += self.log(when, file)
            elif recovered or not file.linked:
                self.file(when, file)
        if recovered:
            self.names(when)
        return old

    def place(self, file):
        """Where it is now."""
        work = os.path.join(self.backing, "work")
        if not file.moving:
            return work
        return next(d for d in (os.path.join(work, name) for name in cast.MOVING) if os.path.isdir(d))

    def file(self, when, file):
        """A version, no older than acknowledged and no newer than closed."""
        self.files += 1
        path = os.path.join(self.place(file), file.name)
        slots = cast.writers_of(self.roles, file.name)
        try:
            with open(path, "rb") as opened:
                data = opened.read()
        except FileNotFoundError:
            if not file.fickle and not any(self.board.programs[slot][board.ABSENT] % 2 for slot in slots):
                self.wrong("lost", f"{when}: {file.name} is gone")
            return
        acked = self.board.acknowledged(slots)
        try:
            said = versions.parse(file.name, file.form, data)
        except versions.Torn as torn:
            self.wrong("torn", f"{when}: {file.name}: {torn}")
            return
        if said.number < acked and not file.fickle:
            self.wrong("lost", f"{when}: {said}, but {acked} was acknowledged")
        if said.number > self.board.programs[said.writer][board.CLOSING]:
            self.wrong("leaked", f"{when}: {said}, which was not closed")
        if file.linked:
            second = os.path.join(self.place(file), cast.second_name(file))
            if not os.path.samefile(path, second):
                self.wrong("lost", f"{when}: {file.name} has lost its second name")

    def log(self, when, file):
        """Records, whole, in order, all that were acknowledged; over the parts of the log, oldest first."""
        directory = self.place(file)
        names = sorted(name for name in os.listdir(directory) if name.startswith(file.name + "."))
        last, gaps = {}, {}
        slots = cast.writers_of(self.roles, file.name)
        for slot in slots:
            last[slot] = self.high.get(slot, 0)
            gaps[slot] = self.numbers("gaps", slot)
        for name in [*names, file.name]:
            self.files += 1
            try:
                with open(os.path.join(directory, name), "rb") as opened:
                    data = opened.read()
            except FileNotFoundError:
                # It was moved away, and nobody has begun the next one yet.
                continue
            if data and not data.endswith(b"\n"):
                self.wrong("torn", f"{when}: {name} ends in a part of a record: {data[-60:]!r}")
            for line in data.splitlines():
                try:
                    said = versions.parse_record(file.name, line)
                except versions.Torn as torn:
                    self.wrong("torn", f"{when}: {name}: {torn}")
                    continue
                before = last[said.writer]
                if said.number <= before:
                    self.wrong("torn", f"{when}: {name}: {said} after {before}")
                self.missing(when, file, said.writer, range(before + 1, said.number), gaps)
                last[said.writer] = max(before, said.number)
            if name != file.name:
                self.high.update(last)
        for slot in slots:
            acked = self.board.programs[slot][board.ACKED]
            self.missing(when, file, slot, range(last[slot] + 1, acked + 1), gaps)
        return [os.path.join("work", name) for name in names]

    def missing(self, when, file, slot, numbers, gaps):
        """Records that are not there: only those that nobody was told of."""
        lost = [number for number in numbers if number not in gaps[slot]]
        if lost:
            self.wrong("lost", f"{when}: {file.name}: {len(lost)} records of {slot}, the first is {lost[0]}")

    def numbers(self, kind, slot):
        """What a writer has noted."""
        try:
            with open(os.path.join(self.notes, f"{kind}-{slot}"), encoding="ascii") as file:
                return {int(line) for line in file if line.endswith("\n")}
        except FileNotFoundError:
            return set()

    def names(self, when):
        """No name but those of the files; what programs leave themselves when they are killed is no harm."""
        known = set(cast.MOVING)
        for file in cast.files_of(self.roles):
            known |= {file.name, file.name + ".new", file.name + ".away", cast.second_name(file)}
        for directory, _, names in os.walk(os.path.join(self.backing, "work")):
            for name in names:
                if name not in known and ".log." not in name:
                    self.wrong("left", f"{when}: {os.path.join(directory, name)}")

    def store(self):
        """What is in latchfs's own directories that belongs to something under way."""
        left = []
        for name in ("tmp", "redo", "append"):
            directory = os.path.join(self.backing, ".latchfs", name)
            if os.path.isdir(directory):
                left += [f"{name}/{entry}" for entry in os.listdir(directory)]
        return left

    def counters(self, when):
        """The programs that count: a number that two of them got is a lost update."""
        counted = [slot for slot, role in enumerate(self.roles) if role.kind == "count"]
        seen = set()
        for slot in counted:
            mine = self.numbers("counted", slot)
            if seen & mine:
                self.wrong("lost", f"{when}: counted twice: {sorted(seen & mine)[:5]}")
            seen |= mine
