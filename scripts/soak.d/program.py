"""What the programs of a stage have in common: where their files are, what an error means, the gate."""

import argparse
import errno
import os
import random
import sys
import time

import board
import cast

# What a call may fail with while the daemon is dead, or nothing is mounted.
DOWN = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT}
# A file in a directory that is renamed all the time is looked for so often.
TRIES = 200


class Program:
    """One program; `slot` is its part of the board."""

    def __init__(self, name):
        parser = argparse.ArgumentParser()
        for option in ("root", "notes", "violations", "roles"):
            parser.add_argument(f"--{option}", required=True)
        parser.add_argument("--slot", type=int, required=True)
        parser.add_argument("--seed", type=int, required=True)
        parser.add_argument("--pace", type=float, required=True)
        parser.add_argument("what", nargs="?")
        args = parser.parse_args()
        self.what, self.slot, self.pace, self.notes = args.what, args.slot, args.pace, args.notes
        self.work = os.path.join(args.root, "work")
        self.roles = cast.STEADY_WRITERS if args.roles == "steady" else cast.WRITERS
        self.board = board.Board(os.path.join(args.notes, "board"))
        self.part = self.board.programs[args.slot]
        self.violations = board.Violations(args.violations)
        self.name = f"{name} {args.slot} {self.what or ''}".strip()
        self.random = random.Random(f"{args.seed} {args.slot} {os.getpid()}")
        self.stage = self.board.stage

    # --- where

    def reach(self, file, act, name=None):
        """act(path of the file), under whichever name its directory has at the moment."""
        name = name or file.name
        if not file.moving:
            return act(os.path.join(self.work, name))
        for attempt in range(TRIES):
            try:
                return act(os.path.join(self.work, cast.MOVING[attempt % 2], name))
            except FileNotFoundError:
                generation = self.stage[board.GENERATION]
                if generation % 2 or not os.path.exists(self.work):
                    raise
                if attempt % 20 == 19:
                    time.sleep(0.001)
        raise FileNotFoundError(errno.ENOENT, "in neither of its directories", name)

    # --- what an error means

    def attempt(self, what, act, also=()):
        """Whether act() did not fail. A failure is expected where there was no daemon meanwhile, and where
        its errno is one of `also`; any other is a violation."""
        before = self.stage[board.GENERATION]
        began = time.monotonic()
        self.part[board.WAITING] = int(began * 1000)
        try:
            act()
            return True
        except OSError as error:
            down = before % 2 or self.stage[board.GENERATION] != before
            if (down and error.errno in DOWN) or error.errno in also:
                self.part.add(board.EXPECTED + error.errno)
            else:
                self.part.add(board.UNEXPECTED + error.errno)
                self.violation("error", f"{what}: {error}{' (while down)' if down else ''}")
            return False
        finally:
            self.part[board.WAITING] = 0
            took = int((time.monotonic() - began) * 1000)
            self.part[board.SLOWEST] = max(self.part[board.SLOWEST], took)

    def violation(self, kind, detail):
        """Notes what must not be."""
        self.violations.note(kind, self.name, detail)

    # --- when

    def pause(self, least=0.3, most=1.7):
        """Between two tasks: a moment; until the mount is there; and at a closed gate until it is open."""
        time.sleep(self.pace * self.random.uniform(least, most))
        while True:
            if self.stage[board.STOP]:
                self.let_go()
                self.part[board.PARKED] = -1
                sys.exit(0)
            gate = self.stage[board.GATE]
            if gate:
                self.let_go()
                self.part[board.PARKED] = gate
            elif self.stage[board.GENERATION] % 2 == 0 or self.random.random() < 0.1:
                # One in ten knocks at the dead mount, too.
                return
            time.sleep(0.01)

    def let_go(self):
        """Closes what is open between two tasks. Nothing, unless a program says so."""
