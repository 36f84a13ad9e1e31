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
set terminal pngcairo size 1300,1200 font ",10"
set output output
set multiplot layout 4,1 title title
set xrange [0:*]
set yrange [0:*]
set grid
set key outside right top
set lmargin 9
set rmargin 30
set ylabel "memory, MiB"
plot $shaken using 1:($2 / 1024.0) with lines lw 2 title "shaken", \\
     $steady using 1:($2 / 1024.0) with lines lw 2 title "steady"
set ylabel "descriptors"
plot $shaken using 1:3 with lines title "shaken", $steady using 1:3 with lines title "steady", \\
     $shaken using 1:5 with lines title "of programs, shaken", $steady using 1:5 with lines title "of programs, steady"
set ylabel "threads"
plot $shaken using 1:4 with lines title "shaken", $steady using 1:4 with lines title "steady"
set xlabel "seconds"
set ylabel "each second"
plot $shaken using 1:6 with lines title "reads, shaken", $steady using 1:6 with lines title "reads, steady", \\
     $shaken using 1:7 with lines title "commits, shaken", $steady using 1:7 with lines title "commits, steady", \\
     $crash using 1:2 with points pt 9 lc "red" title "daemon killed", \\
     $remount using 1:2 with points pt 5 lc "black" title "unmounted"
"""
PLOTTED = ("seconds", "rss_kib", "descriptors", "threads", "handles", "reads", "commits")


def plot(path, image, title):
    """The PNG of a CSV file."""
    blocks = {"shaken": [], "steady": [], "crash": ["-1 0"], "remount": ["-1 0"]}
    lives = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            block = blocks[row["mount"]]
            if lives.setdefault(row["mount"], row["life"]) != row["life"]:
                # An empty line: each daemon has a line of its own.
                block.append("")
                lives[row["mount"]] = row["life"]
            block.append(" ".join(row[column] or "NaN" for column in PLOTTED))
            if row["event"] in ("crash", "remount"):
                blocks[row["event"]].append(f"{row['seconds']} 0")
    script = f"output = '{image}'\ntitle = '{title}'\n"
    for name, lines in blocks.items():
        script += f"${name} << END\n" + "".join(line + "\n" for line in lines) + "END\n"
    subprocess.run(["gnuplot"], input=script + PLOT, text=True, check=True, timeout=120)
