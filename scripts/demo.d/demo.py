"""Runs the demo's programs on a bare directory and on a latchfs mount, and prints what they saw.

Started by scripts/demo, whose header says what the options mean.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import fsmount  # noqa: E402
import market  # noqa: E402
from tally import Tally  # noqa: E402

PIPELINES, READERS, COUNTERS = 3, 8, 4
# Shares of --seconds; the rest goes to the kills.
MIXED_SHARE, COUNTER_SHARE = 0.6, 0.12
# How often a stage may be run again until the bare directory shows the hazard it is there for.
ATTEMPTS = 5
FEWEST_KILLS = 8
# Far beyond any wait that the mount allows: a program still there is stuck.
GRACE = 60.0
# As many digits from the first update to the last, so that a lost update is all that can happen.
FIRST_VIEWS = 1_000_000

HAZARDS = (
    ("torn", "torn reads"),
    ("invalid", "invalid JSON (of the torn reads)"),
    ("lost", "lost updates"),
    ("half_written", "half-written files after kill -9"),
)


class Column:
    """One run of everything on one directory: the bare one or the mount."""

    def __init__(self, directory, symbols, seconds):
        self.directory = directory
        self.symbols = symbols
        self.seconds = seconds
        self.counts = collections.Counter()
        self.errors = collections.Counter()
        self.slowest = 0.0
        self.children = []

    # --- the programs

    def start(self, program, *arguments):
        child = subprocess.Popen(
            [sys.executable, "-B", os.path.join(HERE, program + ".py"), *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.children.append(child)
        return child

    def collect(self, children, seconds):
        """Waits for the programs to end by themselves and adds up what they saw."""
        deadline = time.monotonic() + seconds + GRACE
        for child in children:
            try:
                said, _ = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                self.fail("a program was stuck and had to be killed")
                continue
            self.children.remove(child)
            try:
                tally = json.loads(said)
            except ValueError:
                self.fail(f"a program died, exit code {child.returncode}")
                continue
            self.add(tally["counts"], tally["errors"], tally["slowest"])

    def add(self, counts, errors, slowest):
        self.counts.update(counts)
        self.errors.update(errors)
        self.slowest = max(self.slowest, slowest)

    def fail(self, text):
        self.counts["errors"] += 1
        self.errors[text] += 1

    def stop(self):
        """Ends whatever still runs."""
        for child in self.children:
            child.kill()
        for child in self.children:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                print(f"process {child.pid} does not die", file=sys.stderr)

    # --- the stages

    def prepare(self):
        """A first complete run, alone, so that there is something to read; and the counter."""
        with open(os.path.join(self.directory, "counter.json"), "w") as f:
            json.dump({"views": FIRST_VIEWS}, f)
        before = self.counts["errors"]
        self.collect([self.start("pipeline", self.directory, self.symbols, "once")], 0)
        if self.counts["errors"] != before or not self.counts.pop("runs", 0):
            raise fsmount.Failed(f"the first run of the pipeline failed on {self.directory}: {dict(self.errors)}")
        self.counts.clear()

    def mixed(self):
        """Three pipelines and eight readers, all at once."""
        seconds = self.seconds * MIXED_SHARE
        children = [
            self.start("pipeline", self.directory, self.symbols, "until", seconds) for _ in range(PIPELINES)]
        children += [self.start("reader", self.directory, seconds) for _ in range(READERS)]
        self.collect(children, seconds)

    def views(self):
        with open(os.path.join(self.directory, "counter.json")) as f:
            return json.load(f)["views"]

    def counter(self):
        """Four programs count page views: as many as they counted must be there afterwards."""
        seconds = self.seconds * COUNTER_SHARE
        before, updates = self.views(), self.counts["updates"]
        self.collect([self.start("counter", self.directory, seconds) for _ in range(COUNTERS)], seconds)
        # More found than counted would be just as wrong.
        self.counts["lost"] += abs(self.counts["updates"] - updates - (self.views() - before))

    def kills(self):
        """Starts a phase, kills it somewhere on its way, looks at what it left behind; again and again."""
        seconds = self.seconds * (1 - MIXED_SHARE - COUNTER_SHARE)
        # Rebuilds the files, one phase after the other, and learns how long each takes.
        durations, runs = [], []
        for number, _ in enumerate(market.PHASES):
            began = time.monotonic()
            self.phase(number)
            durations.append(time.monotonic() - began)
            runs.append(self.look(number))
        end = time.monotonic() + seconds
        attempt = 0
        while attempt < FEWEST_KILLS or time.monotonic() < end:
            number = attempt % len(market.PHASES)
            attempt += 1
            child = self.start("pipeline", self.directory, self.symbols, "phase", number)
            try:
                child.wait(timeout=random.uniform(0.3, 1.0) * durations[number])
            except subprocess.TimeoutExpired:
                child.kill()
                self.counts["kills"] += 1
            try:
                child.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                self.fail("a killed program did not die")
                return
            self.children.remove(child)
            run = self.look(number)
            if run is not None and (run == runs[number] or run.startswith(f"{child.pid:010d}-")):
                runs[number] = run
                continue
            self.counts["half_written"] += 1
            # As the operator would: run the phase again.
            self.phase(number)
            runs[number] = self.look(number)

    def phase(self, number):
        """One phase that nobody disturbs."""
        self.collect([self.start("pipeline", self.directory, self.symbols, "phase", number)], 0)

    def look(self, number, directory=None):
        """The run that a file is of, None where it is not whole."""
        phase = market.PHASES[number]
        tally = Tally()

        def load():
            with open(os.path.join(directory or self.directory, phase + ".json")) as f:
                return json.load(f)
        doc = tally.read(load, phase)
        # Only errors count here: what the kills left broken has a row of its own.
        self.add({"errors": tally.counts["errors"]}, tally.errors, 0.0)
        return doc and doc["run"]

    def until_seen(self, stage, hazard, attempts):
        """Runs a stage until the hazard was seen; returns how often."""
        for attempt in range(1, attempts + 1):
            stage()
            if self.counts[hazard]:
                break
        return attempt

    def check_backing(self, backing):
        """After unmounting: the files beneath must be whole too, and nothing else be there."""
        for number, _ in enumerate(market.PHASES):
            if self.look(number, backing) is None:
                self.counts["half_written"] += 1
        expected = {phase + ".json" for phase in market.PHASES} | {"counter.json", ".latchfs"}
        for name in sorted(set(os.listdir(backing)) - expected):
            self.fail(f"left behind in the directory: {name}")


def run_bare(base, options):
    directory = os.path.join(base, "bare")
    os.mkdir(directory)
    column = Column(directory, options.symbols, options.seconds)
    try:
        column.prepare()
        attempts = {
            "mixed": column.until_seen(column.mixed, "invalid", ATTEMPTS),
            "counter": column.until_seen(column.counter, "lost", ATTEMPTS),
            "kills": column.until_seen(column.kills, "half_written", ATTEMPTS),
        }
    finally:
        column.stop()
    return column, attempts


def run_latchfs(base, options, attempts):
    backing, point = os.path.join(base, "backing"), os.path.join(base, "mount")
    log = os.path.join(base, "latchfs.log")
    os.mkdir(backing)
    fsmount.mount([options.latchfs, "mount", "--log-file", log, backing, point], point)
    column = Column(point, options.symbols, options.seconds)
    try:
        column.prepare()
        for stage in ("mixed", "counter", "kills"):
            for _ in range(attempts[stage]):
                getattr(column, stage)()
    except (OSError, ValueError, KeyError) as error:
        column.fail(f"{type(error).__name__}: {error}")
    finally:
        column.stop()
    try:
        fsmount.unmount([options.latchfs, "umount", point], point)
    except fsmount.Failed as error:
        column.fail(str(error))
    column.check_backing(backing)
    if column.counts["errors"] and os.path.exists(log):
        with open(log, errors="replace") as f:
            print("the last lines of latchfs's log:", *f.readlines()[-15:], sep="\n  ", file=sys.stderr)
    return column


def table(columns):
    names = list(columns)
    rows = [["", *names]]

    def row(label, value):
        rows.append([label, *(f"{value(columns[name])}" for name in names)])

    row("reads", lambda c: f"{c.counts['reads']:,}")
    for key, label in HAZARDS:
        row(label, lambda c, key=key: f"{c.counts[key]:,}")
    row("errors (timeouts, failed calls)", lambda c: f"{c.counts['errors']:,}")
    row("(complete pipeline runs)", lambda c: f"{c.counts['runs']:,}")
    row("(counter updates)", lambda c: f"{c.counts['updates']:,}")
    row("(pipelines killed)", lambda c: f"{c.counts['kills']:,}")
    row("(slowest read)", lambda c: f"{c.slowest:.2f} s")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, cells in enumerate(rows):
        print("| " + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths))) + " |")
        if number == 0:
            print("|" + "|".join(
                "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|")


def verdict(bare, latchfs):
    """What speaks against the demo having shown what it is for."""
    against = []
    for key, label in HAZARDS:
        if not bare.counts[key]:
            against.append(f"the bare directory shows no {label}: this run proves nothing about that row")
        if latchfs and latchfs.counts[key]:
            against.append(f"latchfs: {label}: {latchfs.counts[key]}")
    for name, column in (("bare", bare), ("latchfs", latchfs)):
        if column and column.counts["errors"]:
            against.append(f"{name}: errors: " + "; ".join(f"{n} x {text}" for text, n in column.errors.most_common(5)))
        for key in ("reads", "runs", "updates", "kills"):
            if column and not column.counts[key]:
                against.append(f"{name}: no {key} at all")
    return against


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo", add_help=False)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--symbols", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--bare-only", action="store_true")
    parser.add_argument("--latchfs", default=os.environ.get("LATCHFS"))
    options = parser.parse_args()
    options.symbols = options.symbols or (1200 if options.quick else 4000)
    if not (options.seconds > 0 and 1 <= options.symbols <= 26 ** 4):
        parser.error("--seconds and --symbols must be positive (at most 456,976 symbols)")

    with fsmount.workspace(options.dir, "demo") as base:
        kind = fsmount.filesystem_of(base)
        print(f"{PIPELINES} pipelines, {READERS} readers, {options.symbols:,} symbols, "
              f"{options.seconds:g} s each, on {kind} ({options.dir})", flush=True)
        if kind == "tmpfs":
            print("note: this is memory, not a disk; --dir names another place", flush=True)
        columns = {}
        print("bare directory ...", flush=True)
        columns["bare"], attempts = run_bare(base, options)
        sizes = [os.path.getsize(os.path.join(base, "bare", phase + ".json")) for phase in market.PHASES]
        if not options.bare_only:
            print("latchfs mount ...", flush=True)
            columns["latchfs"] = run_latchfs(base, options, attempts)
        print(f"phase files of {min(sizes) // 1000:,} to {max(sizes) // 1000:,} kB\n")
        table(columns)
        bare = columns["bare"].counts
        print(f"\ntorn reads, bare: {bare['empty']:,} empty, {bare['unparsable']:,} cut off or garbled, "
              f"{bare['mixed']:,} valid JSON but of two runs mixed")
        against = verdict(columns["bare"], columns.get("latchfs"))
        for line in against:
            print(line)
        return 1 if against else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fsmount.Failed as failure:
        sys.exit(f"demo: {failure}")
