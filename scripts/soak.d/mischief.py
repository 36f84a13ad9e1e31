"""A program that renames and removes what others are writing and reading: a directory, a file, logs."""

import contextlib
import errno
import os
import sys
import time

import board
import cast
from program import Program

LOG_SIZE = 256 * 1024


class Mischief(Program):
    """One deed after the other."""

    def __init__(self):
        super().__init__("mischief")
        self.logs = [file.name for file in cast.files_of(self.roles) if file.form == "log"]

    def main(self):
        """Until it is stopped."""
        while True:
            self.pause(0.5, 3)
            deed = self.random.choice((self.move, self.fickle, self.rotate))
            self.attempt(deed.__name__, deed, (errno.ENOENT,))

    def move(self):
        """Renames the directory in which some files are."""
        here, there = (os.path.join(self.work, name) for name in cast.MOVING)
        if not os.path.isdir(here):
            here, there = there, here
        os.rename(here, there)
        self.part.add(board.COMMITS)

    def fickle(self):
        """Takes a file away, and puts it back if there is no new one meanwhile; or removes it."""
        path = os.path.join(self.work, "fickle.dat")
        away = path + ".away"
        if self.random.random() < 0.5:
            os.unlink(path)
        else:
            os.rename(path, away)
            time.sleep(self.pace * self.random.random())
            with contextlib.suppress(FileExistsError):
                os.link(away, path)
            os.unlink(away)
        self.part.add(board.COMMITS)

    def rotate(self):
        """As logrotate does; the writers go on with the old one until they open the log again."""
        for name in self.logs:
            path = os.path.join(self.work, name)
            if os.stat(path).st_size > LOG_SIZE:
                number = self.part[board.GONE] = self.part[board.GONE] + 1
                os.rename(path, f"{path}.{number:08}")
                self.part.add(board.COMMITS)


if __name__ == "__main__":
    sys.exit(Mischief().main())
