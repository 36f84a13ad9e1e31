"""Measures a latchfs mount against the bare directory and bindfs, interleaved.

Started by scripts/bench, whose header says what the options mean and how the rows are measured.
"""

import argparse
import json
import mmap
import os
import platform
import random
import select
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import fsmount  # noqa: E402

KIB, MIB = 1024, 1024 * 1024
TARGETS = ("bare", "bindfs", "latchfs")
# One measurement of one row on one target: beyond this it hangs.
LIMIT = 120

ROWS = {}


def row(name, unit, text):
    """Registers a row: a function of a Place that returns seconds per operation (or MiB/s)."""
    def register(function):
        ROWS[name] = (function, unit, text)
        return function
    return register


class Place:
    """Where a row is measured: one of the targets, and how large things are."""

    def __init__(self, target, root, quick):
        self.target = target
        self.root = root
        self.quick = quick

    def path(self, name):
        return os.path.join(self.root, name)

    def times(self, many, few):
        return few if self.quick else many

    @property
    def commits_at_close(self):
        """Whether a plain write and close is an atomic and durable update here."""
        return self.target == "latchfs"


def per_operation(times, operation):
    began = time.perf_counter()
    for _ in range(times):
        operation()
    return (time.perf_counter() - began) / times


def touched(size):
    """Memory whose pages are there already, so that no page fault of ours is measured."""
    return bytearray(b"\xa5") * size


@row("open-read-close", "us", "open, read, close a 4 KiB file, warm")
def open_read_close(place):
    path = place.path("small")

    def once():
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
    per_operation(100, once)
    return per_operation(place.times(2000, 200), once)


@row("stat", "us", "stat a file, warm")
def stat(place):
    path = place.path("small")
    per_operation(100, lambda: os.stat(path))
    return per_operation(place.times(5000, 500), lambda: os.stat(path))


def read_all(path, buffer):
    fd = os.open(path, os.O_RDONLY)
    size = 0
    while True:
        count = os.readv(fd, [buffer])
        if count == 0:
            break
        size += count
    os.close(fd)
    return size


@row("read", "MiB/s", "sequential read of a cached file of 256 MiB, 1 MiB at a time")
def read(place):
    path, buffer = place.path("big"), touched(MIB)
    read_all(path, buffer)
    began = time.perf_counter()
    size = read_all(path, buffer)
    return size / MIB / (time.perf_counter() - began)


@row("pread", "us", "pread of 4 KiB at random places of the cached file")
def pread(place):
    path, buffer = place.path("big"), touched(4 * KIB)
    read_all(path, touched(MIB))
    fd = os.open(path, os.O_RDONLY)
    pages = os.fstat(fd).st_size // len(buffer)
    places = random.Random(1)
    offsets = [places.randrange(pages) * len(buffer) for _ in range(place.times(20000, 1000))]
    began = time.perf_counter()
    for offset in offsets:
        os.preadv(fd, [buffer], offset)
    took = time.perf_counter() - began
    os.close(fd)
    return took / len(offsets)


@row("mmap", "MiB/s", "mmap of the cached file, every page touched")
def mmap_read(place):
    path = place.path("big")
    read_all(path, touched(MIB))
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    began = time.perf_counter()
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
        # One byte of every page; slices of 16 MiB keep the result small.
        for start in range(0, size, 16 * MIB):
            _ = mapped[start:start + 16 * MIB:mmap.PAGESIZE]
    took = time.perf_counter() - began
    os.close(fd)
    return size / MIB / took


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def write_file(path, data, flags, sync):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    os.write(fd, data)
    if sync:
        os.fsync(fd)
    os.close(fd)


@row("update", "us", "atomic, durable update of a 4 KiB file: latchfs: open, write, close; "
                     "others, by hand: temp file, fsync, rename, fsync of the directory")
def update(place):
    return replace_file(place, "updated", touched(4 * KIB), place.times(100, 10))


def replace_file(place, name, data, times):
    """Seconds per atomic, durable update."""
    path = place.path(name)

    def by_hand():
        write_file(path + ".tmp", data, os.O_TRUNC, sync=True)
        os.rename(path + ".tmp", path)
        sync_directory(place.root)

    def plain():
        write_file(path, data, os.O_TRUNC, sync=False)
    once = plain if place.commits_at_close else by_hand
    per_operation(3 if times > 3 else 1, once)
    return per_operation(times, once)


def document(size):
    """A JSON document of about this size, of records as a pipeline writes them."""
    record = {"symbol": "ABCD", "price": 123.25, "volume": 1234567, "signals": ["buy", "hold"], "note": None}
    count = size // (len(json.dumps(record)) + 2)
    return json.dumps([record] * max(count, 1)).encode()


@row("update-json", "us", "the same with 4 KiB of JSON, which latchfs validates (the others do not)")
def update_json(place):
    return replace_file(place, "updated.json", document(4 * KIB), place.times(100, 10))


@row("update-json-large", "ms", "the same with 16 MiB of JSON")
def update_json_large(place):
    return replace_file(place, "large.json", document(16 * MIB if not place.quick else MIB), place.times(3, 1))


@row("append", "us", "append a record of 100 bytes to a log that is held open, not synced")
def append(place):
    fd = os.open(place.path("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    record = bytes(touched(99)) + b"\n"
    once = lambda: os.write(fd, record)  # noqa: E731
    per_operation(20, once)
    took = per_operation(place.times(2000, 100), once)
    os.close(fd)
    return took


@row("append-echo", "us", "open a log, append 100 bytes, close, durable everywhere (others: fsync)")
def append_echo(place):
    path, record = place.path("echoed"), bytes(touched(99)) + b"\n"
    return per_operation(place.times(100, 10), lambda: write_file(path, record, os.O_APPEND, not place.commits_at_close))


@row("write", "MiB/s", "sequential write of 64 MiB, 1 MiB at a time, until it is on the disk "
                       "(latchfs: close; others: fsync, close)")
def write(place):
    path, data = place.path("written"), touched(MIB)
    count = place.times(64, 4)
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(count):
        os.write(fd, data)
    if not place.commits_at_close:
        os.fsync(fd)
    os.close(fd)
    return count / (time.perf_counter() - began)


def create_files(place, sync):
    directory = place.path("created")
    os.mkdir(directory)
    paths = [os.path.join(directory, f"file{n}") for n in range(place.times(500, 20))]
    data = touched(KIB)
    began = time.perf_counter()
    for path in paths:
        write_file(path, data, os.O_EXCL, sync)
        if sync:
            sync_directory(directory)
    took = time.perf_counter() - began
    for path in paths:
        os.unlink(path)
    os.rmdir(directory)
    return took / len(paths)


@row("create", "us", "create 500 files of 1 KiB, as a program does that syncs nothing (latchfs: durable all the same)")
def create(place):
    return create_files(place, sync=False)


@row("create-durable", "us", "the same, durable everywhere (others: fsync of the file and of the directory)")
def create_durable(place):
    return create_files(place, sync=not place.commits_at_close)


@row("ls", "ms", "ls -l of a directory of 1,000 files, the start of ls included")
def ls(place):
    def once():
        subprocess.run(["ls", "-l", place.path("many")], stdout=subprocess.DEVNULL, check=True)
    once()
    return per_operation(place.times(5, 2), once)


# --- the places

def fill(directory, quick):
    """The files that the rows work on, made in the same way behind each place, so that they lie alike
    on the disk and in the page cache."""
    os.mkdir(directory)
    with open(os.path.join(directory, "big"), "wb") as f:
        for _ in range(16 if quick else 256):
            f.write(touched(MIB))
    with open(os.path.join(directory, "small"), "wb") as f:
        f.write(bytes(touched(4 * KIB)))
    os.mkdir(os.path.join(directory, "many"))
    for number in range(100 if quick else 1000):
        with open(os.path.join(directory, "many", f"file{number:04}"), "wb") as f:
            f.write(b"content")


def make_places(base, targets, options):
    places = {}
    for target in targets:
        backing = os.path.join(base, target + ".backing")
        fill(backing, options.quick)
        root = backing
        if target != "bare":
            root = os.path.join(base, target)
            command = {
                "bindfs": ["bindfs", "--no-allow-other", backing, root],
                "latchfs": [options.latchfs, "mount", "--durability", options.durability,
                            "--log-file", os.path.join(base, "latchfs.log"), backing, root],
            }[target]
            fsmount.mount(command, root)
        places[target] = Place(target, root, options.quick)
    os.sync()
    return places


def unmount_places(places, options):
    for target, place in places.items():
        if target == "bindfs":
            command = ["umount" if os.geteuid() == 0 else "fusermount3", place.root]
            if os.geteuid() != 0:
                command.insert(1, "-u")
            fsmount.unmount(command, place.root)
        elif target == "latchfs":
            fsmount.unmount([options.latchfs, "umount", place.root], place.root)


def measure(function, place):
    """One measurement, in a process of its own that can be given up when the mount hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            said = {"value": function(place)}
        except BaseException as error:  # whatever it is, the parent must hear of it
            said = {"error": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], LIMIT)
        said = json.loads(os.read(reading, 65536) or "{}") if ready else {"error": f"not done within {LIMIT} s"}
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
    if "error" not in said:
        os.waitpid(child, 0)
    if "value" not in said:
        raise fsmount.Failed(f"{function.__name__} on {place.target}: {said.get('error', 'died')}")
    return said["value"]


# --- the report

def machine(base, options):
    model = platform.machine()
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cpus = len(os.sched_getaffinity(0))
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    return (f"{model}, {cpus} CPUs; Linux {platform.release()}; {fsmount.filesystem_of(base)}; load {load} at the start; "
            f"as {user}; durability {options.durability}; median of {options.rounds} rounds"
            + ("; QUICK, the numbers mean nothing" if options.quick else ""))


def shown(value, unit):
    scaled = {"us": value * 1e6, "ms": value * 1e3, "MiB/s": value}[unit]
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"


def report(results, targets, description):
    print(f"\n{description}\n")
    ratios = [other for other in targets if other != "latchfs"] if "latchfs" in targets else []
    head = ["row", "unit", *targets, *(f"latchfs / {other}" for other in ratios)]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|---|" + "---:|" * (len(head) - 2))
    for name, values in results.items():
        unit = ROWS[name][1]
        middle = {target: statistics.median(values[target]) for target in targets}
        cells = [name, unit, *(f"{shown(middle[t], unit)} ({shown(min(values[t]), unit)}-{shown(max(values[t]), unit)})"
                               for t in targets)]
        cells += [f"{middle['latchfs'] / middle[other]:.2f}" for other in ratios]
        print("| " + " | ".join(cells) + " |")
    print("\nIn brackets the least and the most. us and ms: less is better. MiB/s: more is better.\n")
    for name in results:
        print(f"- {name}: {ROWS[name][2]}")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", add_help=False)
    parser.add_argument("--row", action="append", choices=list(ROWS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--durability", default="full", choices=("full", "rename", "none"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--latchfs", default=os.environ.get("LATCHFS"))
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 7)
    targets = options.targets.split(",")
    if options.rounds < 1 or not targets or any(target not in TARGETS for target in targets):
        parser.error(f"--rounds must be positive, --targets some of {','.join(TARGETS)}")

    names = [name for name in ROWS if not options.row or name in options.row]
    with fsmount.workspace(options.dir, "bench") as base:
        description = machine(base, options)
        places = make_places(base, targets, options)
        results = {name: {target: [] for target in targets} for name in names}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for name in names:
                # Each target goes first as often as the others.
                first = number % len(targets)
                for target in targets[first:] + targets[:first]:
                    results[name][target].append(measure(ROWS[name][0], places[target]))
        unmount_places(places, options)
        report(results, targets, description)


if __name__ == "__main__":
    try:
        main()
    except fsmount.Failed as failure:
        sys.exit(f"bench: {failure}")
