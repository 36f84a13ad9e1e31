# Writers that know nothing of latchfs. Before each step and after it they write a line to the recording
# disk's `marks`: what can be in a file from here on, and what a close() or an fsync() has acknowledged.
# The grammar stands in history.rs.
import mmap
import os
import random
import subprocess
import sys
import time
import zlib

kind, number, rounds, seed, marks = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
random.seed(f"{kind} {number} {seed}")
told = os.open(marks, os.O_WRONLY)
HEAD = 80


def note(*words):
    os.write(told, " ".join(map(str, words)).encode() + b"\n")


def head(name, version, body):
    line = f"document {name} {version:010} {len(body):08} {zlib.crc32(body):08x}"
    return line.encode().ljust(HEAD - 1) + b"\n"


def document(name, version, size=None):
    body = random.randbytes(size or random.randrange(1000, random.choice([3000, 40000])))
    return head(name, version, body) + body


def record(name, version, number):
    filler = "x" * random.choice([10, 100, 100, 3000, 9000])
    text = f"{name} {version} {number} {filler}"
    return f"record {zlib.crc32(text.encode()):08x} {text}\n".encode()


def version_of(data):
    return int(data[:HEAD].split()[2])


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def sync_directory(path):
    note("syncing", path)
    directory = os.open(path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    note("synced", path)


def settle(directory, version):
    """Sometimes something later makes the directory durable."""
    how = random.randrange(3)
    if how == 0:
        sync_directory(directory)
    elif how == 1:
        name = f"{directory}/settle"
        note("begin", name, version, 0)
        write(name, document(name, version))
        note("end", name, version, 0, "commit")


def replace():
    for v in range(1, rounds + 1):
        note("begin", "replace", v, 0)
        write("replace", document("replace", v))
        note("end", "replace", v, 0, "commit")


def update():
    """In place: some pages of it, and its first line."""
    for v in range(1, rounds + 1):
        note("begin", "update", v, 0)
        with open("update", "r+b", buffering=0) as file:
            data = bytearray(file.read())
            for _ in range(3):
                at = random.randrange(HEAD, len(data) - 100)
                data[at:at + 100] = random.randbytes(100)
                file.seek(at)
                file.write(data[at:at + 100])
            file.seek(0)
            file.write(head("update", v, data[HEAD:]))
        note("end", "update", v, 0, "commit")


def mapped():
    """In place by a mapping; msync commits."""
    for v in range(1, rounds + 1):
        note("begin", "mapped", v, 0)
        with open("mapped", "r+b") as file:
            with mmap.mmap(file.fileno(), 0) as mapping:
                for _ in range(3):
                    at = random.randrange(HEAD, len(mapping) - 100)
                    mapping[at:at + 100] = random.randbytes(100)
                mapping[:HEAD] = head("mapped", v, mapping[HEAD:])
                mapping.flush()
                note("end", "mapped", v, 0, "commit")


def fsynced():
    for v in range(1, 2 * rounds, 2):
        note("begin", "fsynced", v, 0)
        with open("fsynced", "wb", buffering=0) as file:
            file.write(document("fsynced", v))
            os.fsync(file.fileno())
            note("end", "fsynced", v, 0, "commit")
            note("begin", "fsynced", v + 1, 0)
            data = document("fsynced", v + 1)
            middle = random.randrange(len(data))
            file.seek(middle)
            file.write(data[middle:])
            file.truncate()
            file.seek(0)
            file.write(data[:middle])
        note("end", "fsynced", v + 1, 0, "commit")


def append_some(name, version, first, path=None):
    last = first - 1 + random.randrange(1, 6)
    with open(path or name, "ab", buffering=0) as file:
        for r in range(first, last + 1):
            note("begin", name, version, r)
            file.write(record(name, version, r))
            if random.randrange(3) == 0:
                os.fsync(file.fileno())
                note("end", name, version, r, "fsync")
    note("end", name, version, last, "append")
    return last + 1


def append():
    first = 1
    for _ in range(rounds):
        first = append_some("append", 0, first)


def appended():
    """New logs, one after the other."""
    for n in range(1, rounds + 1):
        note("begin", f"logs/{n}", 0, 0)
        first = 1
        for _ in range(3):
            first = append_some(f"logs/{n}", 0, first)


def renamed():
    for v in range(1, rounds + 1):
        temporary = f"moves/temporary-{v}"
        note("begin", temporary, v, 0)
        write(temporary, document("moves/renamed", v))
        note("end", temporary, v, 0, "commit")
        note("moving", temporary, "moves/renamed", v, 0)
        os.rename(temporary, "moves/renamed")
        note("moved", temporary, "moves/renamed", v, 0)
        settle("moves", v)


def removed():
    for v in range(1, rounds + 1):
        name = f"gone/{v}"
        note("begin", name, v, 0)
        write(name, document(name, v))
        note("end", name, v, 0, "commit")
        note("removing", name)
        os.unlink(name)
        note("removed", name)
        settle("gone", v)


def linked():
    """Two names of one inode, updated by either and appended to by either."""
    for v in range(1, rounds + 1):
        names = ["linked", "link"]
        note("begin", "linked", v, 0)
        note("begin", "link", v, 0)
        write(random.choice(names), document("linked", v))
        for name in names:
            note("end", name, v, 0, "rewrite")
        first = 1
        for _ in range(random.randrange(3)):
            with open(random.choice(names), "ab", buffering=0) as file:
                for name in names:
                    note("begin", name, v, first)
                file.write(record("linked", v, first))
                os.fsync(file.fileno())
            for name in names:
                note("end", name, v, first, "fsync")
            first += 1


def made():
    """New files in new directories in new directories."""
    for v in range(1, rounds + 1):
        os.makedirs(f"made/{v}/below")
        for name in f"made/{v}/below/file", f"made/{v}/file":
            note("begin", name, v, 0)
            write(name, document(name, v, 1000))
            note("end", name, v, 0, "commit")


def shared():
    """One of ten that write the same file."""
    for _ in range(rounds):
        with open("shared", "r+b") as file:
            v = version_of(file.read()) + 1
            note("begin", "shared", v, 0)
            file.seek(0)
            file.write(document("shared", v))
            file.truncate()
        note("end", "shared", v, 0, "commit")


SHELL = r"""
set -e
note() { echo "$*" >&9; }
for v in $(seq 1 "$1"); do
    note begin shell $v 0
    { head -c 500; cat; } < "$2/shell-$v" > shell
    note end shell $v 0 commit
    note begin copy $v 0
    cp "$2/copy-$v" copy
    note end copy $v 0 commit
    note begin lines 0 $v
    cat "$2/lines-$v" >> lines
    note end lines 0 $v append
done
"""


def shell():
    """bash and its friends."""
    import tempfile
    with tempfile.TemporaryDirectory() as home:
        for v in range(1, rounds + 1):
            write(f"{home}/shell-{v}", document("shell", v))
            write(f"{home}/copy-{v}", document("copy", v))
            write(f"{home}/lines-{v}", record("lines", 0, v))
        os.dup2(told, 9)
        subprocess.run(["bash", "-c", SHELL, "bash", str(rounds), home], pass_fds=[9], check=True)


# The controls, in a directory beside BACKING; slow enough for the log to be about the others.
PAUSE = 0.003

def plain():
    for v in range(1, rounds + 1):
        note("begin", "bare/plain", v, 0)
        with open("bare/plain", "wb") as file:
            # It takes its time to say what.
            time.sleep(PAUSE)
            file.write(document("bare/plain", v))
        note("end", "bare/plain", v, 0, "commit")
        time.sleep(PAUSE)


def unsynced():
    for v in range(1, rounds + 1):
        note("begin", "bare/unsynced", v, 0)
        write("bare/unsynced.tmp", document("bare/unsynced", v))
        os.rename("bare/unsynced.tmp", "bare/unsynced")
        note("end", "bare/unsynced", v, 0, "commit")
        time.sleep(PAUSE)


def careful():
    for v in range(1, rounds + 1):
        note("begin", "bare/careful", v, 0)
        with open("bare/careful.tmp", "wb") as file:
            file.write(document("bare/careful", v))
            file.flush()
            os.fsync(file.fileno())
        os.rename("bare/careful.tmp", "bare/careful")
        directory = os.open("bare", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        note("end", "bare/careful", v, 0, "commit")


def first():
    """What is there before the power can be cut; run on the bare directories."""
    names = ["replace", "update", "mapped", "fsynced", "moves/renamed", "linked", "shared", "shell", "copy",
             "bare/plain", "bare/unsynced", "bare/careful"]
    for directory in "tree/moves", "tree/gone", "tree/logs", "tree/made", "bare":
        os.makedirs(directory)
    for name in names:
        path = name if name.startswith("bare/") else f"tree/{name}"
        note("first", name, 0, 0)
        write(path, document(name, 0, 30000 if name in ("update", "mapped") else None))
    os.link("tree/linked", "tree/link")
    note("first", "link", 0, 0)
    for name in "append", "lines":
        write(f"tree/{name}", b"")
        note("first", name, 0, 0)
    os.sync()


globals()[kind]()
