"""Runs the soak test. Started by scripts/soak, whose header says what and how."""

import argparse
import collections
import os
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import board  # noqa: E402
import cast  # noqa: E402
import fsmount  # noqa: E402
import samples  # noqa: E402
import selfcheck  # noqa: E402
from stage import Stage  # noqa: E402

# A kill every so many seconds, on average.
KILL_EVERY = 0.7
# Of a crash to the next; half-way between two there is a remount.
PERIOD = 60


def note(text):
    """For the person watching."""
    print(f"soak: {text}", file=sys.stderr, flush=True)


class Direction(threading.Thread):
    """What happens on one stage, and when."""

    def __init__(self, stage, seconds, period, shaken):
        super().__init__()
        self.stage, self.seconds, self.period, self.shaken = stage, seconds, period, shaken
        self.failure = None
        self.leave = threading.Event()

    def run(self):
        try:
            self.direct()
        except (fsmount.Failed, subprocess.SubprocessError, OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.stage.wrong("run", self.failure)

    def direct(self):
        """Kills at random moments; crashes, remounts and rests in turn."""
        stage = self.stage
        stage.start_all()
        began = time.monotonic()
        deeds = [stage.crash, stage.remount] if self.shaken else [stage.rest]
        step = self.period / len(deeds)
        # The first one soon enough that a short run has one, too; at the end there is time for a rest.
        next_deed, done = began + step * 0.7, 0
        next_kill = began + 1
        while (now := time.monotonic()) < began + self.seconds and not self.leave.is_set():
            time.sleep(0.05)
            stage.look_after()
            if now >= next_kill:
                stage.kill_one()
                next_kill = now + stage.random.expovariate(1 / KILL_EVERY)
            if now >= next_deed:
                deeds[done % len(deeds)]()
                done += 1
                next_deed = max(next_deed + step, time.monotonic() + min(step, 2))
        if not stage.bare and not self.shaken:
            stage.rest()
        stage.stop()
        stage.finish()


def run(options, base, stages, out):
    """All stages at once, to their end."""
    violations = stages[0].violations
    for stage in stages:
        stage.prepare()
        stage.mount()
    sampler = samples.Sampler(os.path.join(out, "soak.csv"), stages)
    seconds = options.minutes * 60
    period = min(PERIOD, max(6, seconds / 4))
    directions = [Direction(stage, seconds, period, stage.name != "steady") for stage in stages]
    if options.bare:
        directions = [Direction(stage, seconds, seconds * 10, False) for stage in stages]
    try:
        sampler.start()
        for direction in directions:
            direction.start()
        told = time.monotonic()
        while any(direction.is_alive() for direction in directions):
            time.sleep(0.2)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                note(progress(stages, violations))
    finally:
        for direction in directions:
            direction.leave.set()
        for direction in directions:
            if direction.is_alive():
                direction.join(30)
        sampler.stop()
        for stage in stages:
            stage.stop_now()
    return sampler.rows


def progress(stages, violations):
    """One line."""
    said = []
    for stage in stages:
        said.append(
            f"{stage.name}: {stage.total(board.READS):,} reads, {stage.total(board.COMMITS):,} commits, "
            f"{stage.kills} kills, {stage.crashes} crashes, {stage.remounts} remounts")
    return "; ".join(said) + f"; {len(violations.read())} violations"


def table(stages, rows, kinds):
    """The summary, a column for each stage."""
    lines = [["", *(stage.name for stage in stages)]]

    def row(label, value):
        lines.append([label, *(str(value(stage)) for stage in stages)])

    def most(stage, column):
        return max((r[column] for r in rows if r["mount"] == stage.name and r[column] != ""), default=0)

    row("reads", lambda s: f"{s.total(board.READS):,}")
    row("torn reads", lambda s: s.total(board.TORN))
    row("reads older than acknowledged, or than seen before", lambda s: s.total(board.OLD))
    row("reads of what was never closed", lambda s: s.total(board.LEAKED))
    row("versions and records committed", lambda s: f"{s.total(board.COMMITS):,}")
    row("writers killed", lambda s: s.kills)
    row("daemons killed", lambda s: s.crashes)
    row("unmounted and mounted", lambda s: s.remounts)
    row("files looked at in BACKING", lambda s: f"{s.verifier.files:,}")
    row("failed calls while there was no daemon, or as they should", lambda s: counts(s.errors(board.EXPECTED)))
    row("failed calls otherwise", lambda s: counts(s.errors(board.UNEXPECTED)))
    row("slowest call, s", lambda s: max(part[board.SLOWEST] for part in s.board.programs) / 1000)
    row("most memory of the daemon, MiB", lambda s: f"{most(s, 'rss_kib') / 1024:.1f}")
    row("most descriptors of the daemon", lambda s: most(s, "descriptors"))
    print()
    for number, cells in enumerate(lines):
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print("|---" + "|---:" * len(stages) + "|")
    print(f"\nviolations: {counts(kinds)}")


def counts(table_of):
    """12 ENOENT, 3 EIO."""
    return ", ".join(f"{count:,} {name}" for name, count in sorted(table_of.items())) or "0"


def cause(line):
    """The row that a violation belongs to."""
    if line["moment"] in ("daemon killed", "unmounted"):
        return line["moment"]
    if line["kind"] not in ("torn", "old", "leaked", "lost", "left"):
        return "call"
    return "read" if line["who"].startswith("reader") else "writer killed"


def report(stages, rows, unsteady, found, command):
    """The rows of the table of reliability, as tests/common/reliability.rs prints them."""
    causes = collections.Counter(cause(line) for line in found)

    def total(value):
        return sum(value(stage) for stage in stages)

    programs = f"{len(cast.WRITERS)} writers, {len(cast.READERS)} readers"
    reads, commits = total(lambda s: s.total(board.READS)), total(lambda s: s.total(board.COMMITS))
    lines = (
        ("reads while all of the below happens", f"{programs}; renames, unlinks, log rotations by others", reads, causes["read"]),
        ("calls that fail, hang or kill though a daemon serves", "the same programs", reads + commits, causes["call"]),
        ("writer killed", "SIGKILL at any moment; its file read by the next writer, at rests and at the end",
         total(lambda s: s.kills), causes["writer killed"]),
        ("daemon killed under load", "kill -9; BACKING read before and after recovery",
         total(lambda s: s.crashes), causes["daemon killed"]),
        ("unmounted and mounted under load", "latchfs umount, SIGTERM, umount; BACKING read meanwhile",
         total(lambda s: s.remounts), causes["unmounted"]),
        ("long life of a daemon", "memory and descriptors, sampled each second", len(rows), unsteady),
    )
    for fault, how, cases, violations in lines:
        line = f"soak: {fault}\t{how}\t{cases}\t{violations}\t{command}\n"
        print(f"reliability\t{line}", end="")
        path = os.environ.get("LATCHFS_RELIABILITY")
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line)


def conclude(options, stages, rows, out):
    """Prints all there is to say. Whether it was right."""
    violations = stages[0].violations
    for stage in stages:
        for line in stage.warnings()[:5]:
            stage.wrong("log", line)
    found = violations.read()
    kinds = collections.Counter(line["kind"] for line in found)
    table(stages, rows, kinds)
    for line in found[:5 if options.bare else 30]:
        note(f"{line['when']} {line['kind']}: {line['who']}, {line['moment']}: {line['detail']}")
    if options.bare:
        torn = sum(stage.total(board.TORN) for stage in stages)
        print(f"the bare directory: {torn:,} torn reads; the checker {'sees them' if torn else 'SEES NONE'}")
        return torn > 0
    lines, unsteady = samples.judge(rows)
    print("\n".join(lines))
    report(stages, rows, unsteady, found, options.command)
    image = os.path.join(out, "soak.png")
    samples.plot(os.path.join(out, "soak.csv"), image, f"latchfs soak, {options.minutes:g} minutes, seed {options.seed}")
    print(f"samples, plot, violations and the daemons' logs: {out}")
    shaken = stages[0]
    if not shaken.kills or not shaken.crashes or not shaken.remounts:
        note("not everything happened: nothing is proved")
        return False
    return not found and not unsteady


def main():
    """Exit code 0: nothing that must not be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--dir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--command", default="scripts/soak")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--supervise", action="store_true")
    options = parser.parse_args()
    options.latchfs = None if options.bare else os.environ["LATCHFS"]
    note(f"{options.minutes:g} minutes, seed {options.seed}, {options.dir}")
    try:
        selfcheck.main()
        with fsmount.workspace(options.dir, "soak") as base:
            os.chmod(base, 0o755)
            violations = board.Violations(os.path.join(base, "violations"))
            if options.bare:
                stages = [Stage(base, "bare", options, violations, cast.WRITERS, cast.READERS)]
            else:
                stages = [
                    Stage(base, "shaken", options, violations, cast.WRITERS, cast.READERS),
                    Stage(base, "steady", options, violations, cast.STEADY_WRITERS, cast.STEADY_READERS)]
            rows = run(options, base, stages, options.out)
            good = conclude(options, stages, rows, options.out)
            keep(stages, violations, options.out)
            return 0 if good else 1
    except (fsmount.Failed, subprocess.SubprocessError, OSError) as error:
        note(f"{type(error).__name__}: {error}")
        return 1


def keep(stages, violations, out):
    """What is needed to find out why."""
    for path, name in [(violations.path, "violations"), *(
            (os.path.join(stage.base, "log"), f"{stage.name}.log") for stage in stages)]:
        if os.path.exists(path):
            with open(path, "rb") as source, open(os.path.join(out, name), "wb") as target:
                target.write(source.read())


if __name__ == "__main__":
    sys.exit(main())
