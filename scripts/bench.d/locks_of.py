"""For how much of the time each lock of the daemon is held while 100 threads update files, by a build of it that notes
that (src/sync/timed.rs)."""

import os
import re
import time

import fsmount
import places
import rows

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
THREADS = 100
HELD = re.compile(r"locks: ([\d.]+) % at most (\d+) us (\d+) times (\S+):(\d+)")
# Locks that are held for less than this, in per cent of the time, are left out.
LEAST = 0.05


def name_of(path, line):
    """The field that is made there, if the line says so, and the file."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        text = f.read().splitlines()[int(line) - 1].strip()
    field = re.match(r"(\w+):", text)
    return f"`{field.group(1)}` in `{path}`" if field else f"`{path}`"


def held(log):
    with open(log, encoding="utf-8", errors="replace") as f:
        return [(float(share), int(longest), int(times), path, line)
                for share, longest, times, path, line in HELD.findall(f.read())]


def reported(log):
    """The same, once the daemon has ended."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := held(log):
            return found
        time.sleep(0.05)
    raise fsmount.Failed(f"no lock times in {log}: was the daemon built with --features lock-times?")


def table(base, where, options):
    lines = [f"{THREADS} threads, each with a file of its own, update it again and again:", "",
             "| files | lock | held alone, % of the time | longest, us | taken |", "|---|---|---:|---:|---:|"]
    for what, operation in [("in one directory", "writers"), ("in a directory each", "writers-apart")]:
        backing = os.path.join(where, operation)
        mountpoint, log = (os.path.join(base, f"{operation}.{name}") for name in ("mount", "log"))
        os.mkdir(backing)
        fsmount.mount([options.latchfs, "mount", "-v", "--log-file", log, backing, mountpoint], mountpoint)
        place = places.Place("latchfs", mountpoint, backing, options)
        place.work(operation, mountpoint, THREADS, place.size(100, 2), 4 * rows.KIB, "plain")
        fsmount.unmount([options.latchfs, "umount", mountpoint], mountpoint)
        for share, longest, times, path, line in sorted(reported(log), reverse=True):
            if share >= LEAST:
                lines.append(f"| {what} | {name_of(path, line)} | {share:.2f} | {longest:,} | {times:,} |")
    return "\n".join(lines)
