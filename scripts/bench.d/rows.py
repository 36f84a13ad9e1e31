"""What scripts/bench measures. A row is a function of a place that returns its numbers: seconds by name, or a rate."""

import contextlib
import os
import subprocess
import sys
import tarfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import fsmount  # noqa: E402
import places  # noqa: E402

KIB, MIB = 1024, 1024 * 1024
ROWS = {}


class Row:
    """`number` as in docs/performance.md. `unit`: us, ms, s (less is better), MiB/s or per s (more is). `shown`: which
    of the numbers are lines of the table. `target`: what the ratio to the bare directory may be at most (less is
    better) or at least. `on`: the places where it makes sense."""

    def __init__(self, name, function, number, unit, text, shown, target, on):
        self.name, self.measure, self.number, self.unit, self.text = name, function, number, unit, text
        self.shown, self.target, self.on = shown, target, on

    def less_is_better(self):
        return self.unit in ("us", "ms", "s", "MiB")


def row(name, number, unit, text, shown=("median",), target=None, on=places.TARGETS):
    def register(function):
        ROWS[name] = Row(name, function, number, unit, text, shown, target or {}, on)
        return function
    return register


def latency(said):
    """Median and percentiles of samples, in seconds."""
    ns = sorted(said["ns"])
    at = lambda part: ns[min(int(len(ns) * part), len(ns) - 1)] / 1e9  # noqa: E731
    return {"median": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)}


def timed(work):
    began = time.perf_counter()
    work()
    return {"median": time.perf_counter() - began}


# --- 1, 3: updates

def update(place, directory, size, times, promise):
    return latency(place.work("update", place.path(directory, "updated"), size, times, place.mode(promise)))


BY_HAND = "latchfs: open, write, close; others, by hand: temporary file, fsync, rename, fsync of the directory"


@row("update", 1, "us", f"update of a file of 4 KiB. {BY_HAND}", ("median", "p99"), {"median": 1.10, "p99": 1.25})
def update_4k(place):
    return update(place, "full", 4 * KIB, place.size(300, 5), "full")


@row("update-1m", 1, "ms", "the same with 1 MiB", target={"median": 1.05})
def update_1m(place):
    return update(place, "full", MIB, place.size(60, 3), "full")


@row("update-64m", 1, "ms", "the same with 64 MiB", target={"median": 1.05})
def update_64m(place):
    return update(place, "full", place.size(64, 2) * MIB, place.size(4, 1), "full")


@row("update-rename", 3, "us", "update of 4 KiB, durability = rename; others: temporary file, fsync, rename",
     target={"median": 1.10})
def update_rename(place):
    return update(place, "rename", 4 * KIB, place.size(300, 5), "rename")


@row("update-none", 3, "us", "update of 4 KiB, durability = none; others: temporary file, rename", target={"median": 1.5})
def update_none(place):
    return update(place, "none", 4 * KIB, place.size(1000, 5), "none")


@row("update-json", "", "us", "update of 4 KiB of JSON, which latchfs validates and the others do not")
def update_json(place):
    return latency(place.work("update", place.path("full", "updated.json"), 4 * KIB, place.size(300, 5), place.mode()))


@row("update-json-16m", "", "ms", "the same with 16 MiB")
def update_json_16m(place):
    size = place.size(16, 1) * MIB
    return latency(place.work("update", place.path("full", "large.json"), size, place.size(10, 1), place.mode()))


@row("append", "", "us", "append a record of 100 bytes to a log that is held open, not synced")
def append(place):
    return latency(place.work("append", place.path("full", "held.log"), place.size(5000, 10), "held"))


@row("append-close", "", "us", "open a log, append 100 bytes, close; durable (others: fsync before the close)")
def append_close(place):
    mode = "close" if place.latchfs else "sync"
    return latency(place.work("append", place.path("full", "closed.log"), place.size(300, 5), mode))


# --- 2, 11: many writers

def writers(place, threads, times):
    return place.work("writers", place.path("full"), threads, times, 4 * KIB, place.mode())


@row("writers", 2, "per s", "updates of 4 KiB by 16 threads, each of its own file in one directory", ("per_s",), {"per_s": 1.3})
def writers_16(place):
    return writers(place, 16, place.size(40, 2))


@row("writers-100", 11, "per s", "the same by 100 threads", ("per_s",))
def writers_100(place):
    return writers(place, 100, place.size(10, 1))


# --- 4: a little of a large file

def big(place, directory):
    return place.file(os.path.join(directory, "big"), place.size(1024, 8) * MIB)


@row("edit", 4, "ms", "4 KiB in the middle of a file of 1 GiB. latchfs: open, pwrite, close; others where files can be "
                      "cloned (XFS, btrfs): pwrite, fsync, which is not atomic; else copy, pwrite, fsync, rename, fsync",
     target={"median": 1.3})
def edit(place):
    by_hand = "sync" if place.filesystem in ("xfs", "btrfs") else "copy"
    mode = "plain" if place.latchfs else by_hand
    times = 1 if place.quick or place.filesystem not in ("xfs", "btrfs") else 20
    return latency(place.work("edit", big(place, "full"), times, mode))


@row("open-to-update", 4, "us", "open the file of 1 GiB to update, and close it without a write")
def open_to_update(place):
    return latency(place.work("open-to-update", big(place, "full"), place.size(300, 5)))


# --- 5, 6: large reads and writes

@row("read", 5, "MiB/s", "read a cached file of 1 GiB, 1 MiB at a time", ("mib_per_s",), {"mib_per_s": 0.97})
def read(place):
    return place.work("read", big(place, "full"))


@row("pread", 5, "us", "pread of 4 KiB at random places of it", target={"median": 1.11})
def pread(place):
    return latency(place.work("pread", big(place, "full"), place.size(50000, 1000)))


@row("mmap", 5, "MiB/s", "map it, and touch every page", ("mib_per_s",), {"mib_per_s": 0.97})
def mmap(place):
    return place.work("mmap", big(place, "full"))


def write(place, directory):
    path = place.path(directory, "written")
    said = place.work("write", path, place.size(1024, 8))
    os.unlink(os.path.join(place.backing, directory, "written"))
    return said


@row("write-direct", 6, "MiB/s", "write 1 GiB to a file that a rule calls direct, before the close", ("mib_per_s",),
     {"mib_per_s": 0.95})
def write_direct(place):
    return write(place, "direct")


@row("write", 6, "MiB/s", "write 1 GiB to an atomic file, before the close", ("mib_per_s",), {"mib_per_s": 0.75})
def write_atomic(place):
    return write(place, "none")


# --- 7, 8: small files

@row("open-read-close", 7, "us", "open, read, close a file of 4 KiB, warm", ("median", "p99"), {"median": 5.6})
def open_read_close(place):
    return latency(place.work("open-read-close", place.file("small", 4 * KIB), place.size(5000, 100)))


@row("open-read-close-cold", 7, "us", "the same of 1,000 files that nobody has read since the caches were dropped",
     target={"median": 1.3})
def open_read_close_cold(place):
    count = place.size(1000, 20)
    path = place.files("cold", count, 4 * KIB)
    places.drop_caches()
    return latency(place.work("open-read-close-each", path, count))


@row("stat", 8, "us", "stat of a file, warm", target={"median": 1.15})
def stat(place):
    return latency(place.work("stat", place.file("small", 4 * KIB), place.size(20000, 100)))


@row("find", 8, "s", "find over 100,000 files, caches dropped", target={"median": 3})
def find(place):
    path = place.files("tree", place.size(100_000, 200))
    places.drop_caches()
    return timed(lambda: place.run("find", path, "-name", "nothing"))


@row("ls", 8, "ms", "ls -l of a directory of 10,000 files, again", target={"median": 2})
def ls(place):
    path = place.files("many", place.size(10_000, 100))
    once = lambda: place.run("ls", "-l", path)  # noqa: E731
    once()
    return timed(once)


# --- 9: unpacking

def archive(place, count):
    """A tar of small files, in the directory behind."""
    path = os.path.join(os.path.dirname(place.backing), f"files{count}.tar")
    if not os.path.exists(path):
        source = os.path.join(os.path.dirname(place.backing), f"files{count}")
        os.mkdir(source)
        for number in range(count):
            with open(os.path.join(source, f"file{number}"), "wb") as f:
                f.write(b"\xa5" * (4 * KIB))
        with tarfile.open(path, "w") as tar:
            tar.add(source, "files")
        places.drop_caches()
    return path


def unpack(place, directory):
    path = archive(place, place.size(10_000, 20))
    to = place.path(directory, "unpacked")
    place.run("mkdir", to)
    took = timed(lambda: place.run("tar", "-xf", path, "-C", to))
    place.run("rm", "-rf", to)
    os.sync()
    return took


@row("tar", 9, "s", "unpack 10,000 files of 4 KiB. latchfs: durability = full; others: each created atomically by hand",
     target={"median": 1.15})
def tar(place):
    if place.latchfs:
        return unpack(place, "full")
    count = place.size(10_000, 20)
    to = place.path("full", "unpacked")
    os.mkdir(to)
    took = timed(lambda: place.work("create", to, count, 4 * KIB, "full"))
    place.run("rm", "-rf", to)
    return took


@row("tar-none", 9, "s", "the same by tar everywhere, durability = none", target={"median": 4})
def tar_none(place):
    return unpack(place, "none")


# --- 10, 12: latchfs alone

OURS = ("latchfs", "latchfs-user")


@row("hand-over", 10, "us", "from the close() of one writer to the return of the open() of the next, which waited",
     ("median", "p99"), on=OURS)
def hand_over(place):
    return latency(place.work("hand-over", place.path("none", "handed"), place.size(200, 3)))


def cpu_seconds(pid):
    # Of a daemon, which never waits for itself: its stat can be read.
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Each holds its files until its standard input ends.
WRITE = """
import os, sys
for number in range(int(sys.argv[1])):
    os.write(os.open(f"{sys.argv[2]}{number}", os.O_RDWR | os.O_CREAT), b"x")
print("ready", flush=True)
sys.stdin.read()
"""
WAIT = """
import os, sys, threading
threading.stack_size(128 * 1024)
def wait():
    os.close(os.open(sys.argv[2], os.O_RDONLY))
for _ in range(int(sys.argv[1])):
    threading.Thread(target=wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def running(place, script, *arguments):
    """A Python program that has said that it is ready."""
    with subprocess.Popen(["python3", "-c", script, *map(str, arguments)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, **place.credentials()) as process:
        if process.stdout.readline() != "ready\n":
            raise fsmount.Failed(f"{place.target}: a program of the row did not start")
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(places.LIMIT)


@row("waiters", 10, "ms", "processor time of the daemon in one second while 1,000 threads wait for a file", ("cpu",), on=OURS)
def waiters(place):
    path = place.path("none", "awaited")
    seconds = place.size(4, 1)
    with running(place, WRITE, 1, path), running(place, WAIT, place.size(1000, 20), path + "0"):
        time.sleep(1)
        before = cpu_seconds(place.daemon())
        time.sleep(seconds)
        return {"cpu": (cpu_seconds(place.daemon()) - before) / seconds}


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) * KIB


@row("memory", 12, "MiB", "the daemon's resident memory, whatever it has served before and the kernel has forgotten", ("rss",), on=OURS)
def memory(place):
    places.drop_caches()
    # What is forgotten is given back when no more of it comes.
    said = []
    for _ in range(place.size(50, 1)):
        said.append(resident(place.daemon()))
        time.sleep(0.1)
    return {"rss": min(said) / MIB}


@row("transactions", 12, "KiB", "what it grows by for each of 1,000 files that are being written", ("each",), on=OURS)
def transactions(place):
    count = place.size(1000, 20)
    before = resident(place.daemon())
    with running(place, WRITE, count, place.path("none", "open")):
        return {"each": (resident(place.daemon()) - before) / KIB / count}


if __name__ == "__main__":
    for one in ROWS.values():
        print(f"{one.name:22}{one.text}")
