"""Runs the parts of the conformance suite, judges their rows, and writes the document.

Started by scripts/conformance, whose header says what a part is and what its rows mean.
"""

import argparse
import datetime
import fnmatch
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import fsmount  # noqa: E402

COLUMNS = ("suite", "case", "bare", "mount", "note")


def say(text):
    print(text, file=sys.stderr, flush=True)


class Part:
    """One executable of scripts/conformance.d."""

    def __init__(self, path, fast):
        self.path = path
        self.name = os.path.basename(path).split("-", 1)[1]
        self.limit = int(self.field("fast" if fast else "limit") or self.field("limit"))
        self.rows, self.problems = [], []
        self.seconds = 0.0

    def field(self, name):
        """What the header comment says of it."""
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                if not line.startswith("#"):
                    return None
                if line[1:].strip().startswith(name + ":"):
                    return line.split(":", 1)[1].strip()
        return None

    def run(self, work):
        began = time.monotonic()
        home = os.path.join(work, self.name)
        os.mkdir(home)
        os.chmod(home, 0o755)
        child = subprocess.Popen(
            [self.path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            start_new_session=True, cwd=home, env=dict(os.environ, CONFORMANCE_WORK=home))
        reader = threading.Thread(target=self.read, args=(child.stdout,), daemon=True)
        reader.start()
        try:
            code = child.wait(timeout=self.limit)
            if code != 0:
                self.problems.append(f"exit code {code}")
        except subprocess.TimeoutExpired:
            self.problems.append(f"not done within {self.limit} s")
        finally:
            for point in leftovers(home):
                self.problems.append(f"left a mount behind: {point}")
                fsmount.force_unmount(point)
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        reader.join(timeout=5)
        if not self.rows:
            self.problems.append("no row")
        if not leftovers(home):
            subprocess.run(["rm", "-rf", "--one-file-system", "--", home], check=False)
        self.seconds = time.monotonic() - began

    def read(self, output):
        for line in output:
            cells = tuple(cell.strip() for cell in line.rstrip("\n").split("|"))
            if len(cells) != len(COLUMNS):
                self.problems.append(f"printed what is no row: {line.strip()!r}")
                continue
            self.rows.append(cells)
            say(f"  {' | '.join(cells)}")


def leftovers(home):
    """The mounts below a directory, innermost first."""
    return [point for _, _, point in reversed(fsmount.mounts()) if point.startswith(home + "/")]


class Known:
    """The listed differences, and which of them were met."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.entries = tomllib.load(file).get("known", [])
        self.met = set()

    def reason(self, suite, case):
        for number, entry in enumerate(self.entries):
            if fnmatch.fnmatchcase(suite, entry["suite"]) and fnmatch.fnmatchcase(case, entry["case"]):
                self.met.add(number)
                return entry["reason"]
        return None


def judge(part, known):
    """(rows as they are shown, failures)."""
    shown, failures = [], [f"{part.name}: {problem}" for problem in part.problems]
    for suite, case, bare, mount, note in part.rows:
        if mount.startswith("FAILED") and not bare.startswith("FAILED"):
            reason = known.reason(suite, case)
            if reason is None:
                failures.append(f"{suite}, {case}: {mount} (bare: {bare}) {note}")
            else:
                mount, note = "known: " + mount.removeprefix("FAILED").strip(": "), reason
        shown.append((suite, case, bare, mount, note))
    return shown, failures


def table(rows):
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def surroundings():
    """What the run was made with: kernel, tools, latchfs."""
    def first_line(*command):
        _, said = fsmount.run(*command)
        return said.splitlines()[0].strip() if said else "?"
    return ", ".join((
        datetime.date.today().isoformat(), f"Linux {platform.release()}",
        f"{os.cpu_count()} cores", first_line("mkfs.ext4", "-V").split(" (")[0],
        first_line("mkfs.xfs", "-V"), first_line(os.environ["LATCHFS"], "--version")))


def write(document, part, text):
    """Puts the text between the markers of the part; at the end, where there are none yet."""
    with open(document, encoding="utf-8") as file:
        page = file.read()
    begin, end = f"<!-- {part}: written by scripts/conformance -->", f"<!-- end of {part} -->"
    block = f"{begin}\n{text}\n{end}"
    if begin in page and end in page:
        before, rest = page.split(begin, 1)
        page = before + block + rest.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n## {part}\n\n{block}\n"
    with open(document, "w", encoding="utf-8") as file:
        file.write(page)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", required=True)
    parser.add_argument("--document")
    parser.add_argument("--known", required=True)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("parts", nargs="+")
    options = parser.parse_args()
    known = Known(options.known)
    parts = [Part(path, options.fast) for path in options.parts]
    failures, all_rows = [], []
    with fsmount.workspace(options.dir, "conformance") as work:
        os.chmod(work, 0o755)
        for part in parts:
            say(f"== {part.name} (at most {part.limit} s)")
            part.run(work)
            say(f"== {part.name}: {part.seconds:.0f} s")
            rows, failed = judge(part, known)
            all_rows += rows
            failures += failed
            if options.document:
                write(options.document, part.name,
                      f"{surroundings()}; {part.seconds:.0f} s.\n\n{table(rows)}")
    print(table(all_rows))
    for failure in failures:
        print(f"FAILED: {failure}")
    for number, entry in enumerate(known.entries):
        here = any(fnmatch.fnmatchcase(row[0], entry["suite"]) for row in all_rows)
        if here and not options.fast and number not in known.met:
            say(f"listed, but not met this time: {entry['suite']}, {entry['case']}")
    print(f"{len(all_rows)} rows, {len(failures)} failures")
    return 1 if failures else 0


sys.exit(main())
