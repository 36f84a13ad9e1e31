"""How many requests the kernel sends for what a program does, by the daemon's own log of them."""

import collections
import os
import re
import subprocess
import time

import fsmount

# What a shell line does, and how often it is done by the line: `i` counts.
OPERATIONS = {
    "open, read, close (again)": "cat f{i} > /dev/null",
    "stat (again)": "stat -c %s f{i} > /dev/null",
    "update: open with O_TRUNC, write, close": "echo new > f{i}",
    "append a record": "echo more >> f{i}",
    "create: open, write, close": "echo new > new{i}",
    "rename": "mv f{i} g{i}",
    "unlink": "rm g{i}",
}
# A line of fuser's.
REQUEST = re.compile(r"FUSE\(\s*\d+\) ino \w+ (\w+)")


def table(base, options):
    backing, root, log = (os.path.join(base, name) for name in ("requests.backing", "requests", "requests.log"))
    os.mkdir(backing)
    times = 20
    for number in range(times):
        with open(os.path.join(backing, f"f{number}"), "w") as f:
            f.write("old")
    fsmount.mount([options.latchfs, "mount", "-vv", "--log-file", log, backing, root], root)
    lines = ["| operation | requests | which |", "|---|---:|---|"]
    for name, script in OPERATIONS.items():
        # What is known of every name is known before: the kernel believes it for a second.
        subprocess.run(["sh", "-c", f"ls -l {root} > /dev/null"], check=True, timeout=60)
        before = os.path.getsize(log)
        script = "; ".join(script.format(i=number) for number in range(times))
        subprocess.run(["sh", "-c", script], cwd=root, check=True, timeout=60)
        time.sleep(0.5)  # RELEASE and FORGET come when they come, and nobody can be asked
        with open(log, encoding="utf-8", errors="replace") as f:
            f.seek(before)
            found = collections.Counter(REQUEST.findall(f.read()))
        each = {kind: count / times for kind, count in found.items() if count / times >= 0.1}
        which = ", ".join(f"{kind} {count:.3g}" for kind, count in sorted(each.items(), key=lambda e: -e[1]))
        lines.append(f"| {name} | {sum(each.values()):.3g} | {which} |")
    fsmount.unmount([options.latchfs, "umount", root], root)
    return "\n".join(lines)
