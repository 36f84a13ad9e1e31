"""What the daemons take while they serve: a sample each second, as CSV; whether it stays flat; a plot."""

import collections
import csv
import os
import statistics
import subprocess
import threading
import time

import board

COLUMNS = (
    "seconds", "mount", "life", "event", "resting", "rss_kib", "descriptors", "threads", "handles", "reads", "commits",
    "kernel_inodes")
# A life of a daemon that is shorter than this says nothing.
SHORTEST = 15
WARM_UP = 30
RSS_MORE, RSS_SHARE = 8 * 1024, 0.10
# At rest nothing is open. What else the daemon has open (directories that were used lately) may differ a little.
DESCRIPTORS_MORE = 16


def kernel_inodes():
    """How many inodes of FUSE the kernel has cached, on the whole machine; nothing if it does not tell."""
    try:
        with open("/proc/slabinfo", encoding="ascii") as table:
            return next((int(line.split()[1]) for line in table if line.startswith("fuse_inode ")), "")
    except OSError:
        return ""


def process(pid):
    """(resident memory in KiB, descriptors, threads) of a daemon; nothing of a dead one."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["VmRSS"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])
    except (OSError, KeyError, ValueError):
        return "", "", ""


def handles(stage):
    """How many descriptors of files on its mount the programs of a stage have."""
    count = 0
    for child in list(stage.children.values()):
        directory = f"/proc/{child.pid}/fd"
        try:
            for name in os.listdir(directory):
                count += os.readlink(os.path.join(directory, name)).startswith(stage.point + "/")
        except OSError:
            pass
    return count


class Sampler(threading.Thread):
    """Writes a row of each stage each second until it is stopped."""

    def __init__(self, path, stages):
        super().__init__(daemon=True)
        self.path, self.stages = path, stages
        self.ended = threading.Event()
        self.rows = []

    def run(self):
        began = time.monotonic()
        before = collections.Counter()
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            turn = 0
            while not self.ended.wait(max(0, began + turn - time.monotonic())):
                turn += 1
                for stage in self.stages:
                    row = self.sample(stage, time.monotonic() - began, before)
                    self.rows.append(row)
                    writer.writerow(row)
                file.flush()

    def sample(self, stage, seconds, before):
        """One row."""
        rss, descriptors, threads = process(stage.pid) if stage.pid else ("", "", "")
        event, stage.event = stage.event, ""
        row = {
            "seconds": round(seconds, 1), "mount": stage.name, "life": stage.life, "event": event,
            "resting": int(stage.moment == "at rest" and event != "rest"), "rss_kib": rss, "descriptors": descriptors,
            "threads": threads, "handles": handles(stage), "kernel_inodes": kernel_inodes()}
        for name, index in (("reads", board.READS), ("commits", board.COMMITS)):
            total = stage.total(index)
            row[name] = total - before[stage.name, name]
            before[stage.name, name] = total
        return row

    def stop(self):
        """Ends, and closes the file."""
        self.ended.set()
        self.join()


def judge(rows):
    """(what was compared, as lines; how many of them are not flat). A life of a daemon after its warm-up, with
    its end; what it has open at rest, with the first rest."""
    lives = collections.defaultdict(list)
    for row in rows:
        if row["rss_kib"] != "":
            lives[row["mount"], row["life"]].append(row)
    lines, bad = [], 0
    for (mount, life), samples in lives.items():
        began, ended = samples[0]["seconds"], samples[-1]["seconds"]
        if ended - began < SHORTEST:
            continue
        warm = began + min(WARM_UP, (ended - began) / 3)
        base = statistics.median(row["rss_kib"] for row in samples if warm <= row["seconds"] <= warm + 5)
        end = statistics.median(row["rss_kib"] for row in samples if row["seconds"] >= ended - 5)
        limit = base * (1 + RSS_SHARE) + RSS_MORE
        verdict = "flat" if end <= limit else "GROWS"
        bad += end > limit
        text = (f"{mount} life {life}, {ended - began:.0f} s: memory {base / 1024:.1f} MiB after {warm - began:.0f} s, "
                f"{end / 1024:.1f} MiB at its end (at most {limit / 1024:.1f})")
        resting = [row["descriptors"] for row in samples if row["resting"]]
        if resting:
            most = resting[0] + DESCRIPTORS_MORE
            bad += resting[-1] > most
            verdict = verdict if resting[-1] <= most else "GROWS"
            text += f"; {resting[0]} descriptors at its first rest, {resting[-1]} at its last (at most {most})"
        lines.append(f"{verdict}: {text}")
    return lines, bad


PLOT = """
set terminal pngcairo size 1200,1100 font ",10"
set output output
set datafile separator ","
set multiplot layout 4,1 title title
set xrange [0:*]
set yrange [0:*]
set grid
set key outside right top
set lmargin 9
set rmargin 24
at(name, column) = (strcol(2) eq name) ? column : NaN
event(name, what) = (strcol(2) eq name && strcol(4) eq what) ? $1 : NaN
set ylabel "memory, MiB"
plot for [name in names] data every ::1 using 1:(at(name, $6 / 1024.0)) with points pt 7 ps 0.3 title name
set ylabel "descriptors"
plot for [name in names] data every ::1 using 1:(at(name, $7)) with points pt 7 ps 0.3 title name, \\
     for [name in names] data every ::1 using 1:(at(name, $9)) with dots title name." handles of programs"
set ylabel "threads"
plot for [name in names] data every ::1 using 1:(at(name, $8)) with points pt 7 ps 0.3 title name
set xlabel "seconds"
set ylabel "each second"
plot for [name in names] data every ::1 using 1:(at(name, $10)) with dots title name." reads", \\
     for [name in names] data every ::1 using 1:(at(name, $11)) with dots title name." commits", \\
     data every ::1 using (event("shaken", "crash")):(0) with impulses notitle, \\
     data every ::1 using (event("shaken", "crash")):(10) with points pt 9 ps 1 lc "red" title "daemon killed", \\
     data every ::1 using (event("shaken", "remount")):(10) with points pt 5 ps 0.8 lc "black" title "unmounted"
"""


def plot(path, image, names, title):
    """The PNG of a CSV file."""
    settings = {"data": path, "output": image, "names": " ".join(names), "title": title}
    head = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
    subprocess.run(["gnuplot"], input=head + PLOT, text=True, check=True, timeout=120)
