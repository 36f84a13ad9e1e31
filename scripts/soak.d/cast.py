"""Who takes part: the files of one stage, and the programs that write and read them."""

import collections

# form: how a version looks (json, doc: a header and bytes, log: records).
# moving: it is in a directory that another program renames. fickle: another program renames and removes it.
# linked: it has a second name. gone: its own writer removes it now and then.
File = collections.namedtuple("File", "name form moving fickle linked gone", defaults=(False,) * 4)
Role = collections.namedtuple("Role", "kind file")

FILES = {file.name: file for file in (
    File("prices.json", "json"),
    File("report.json", "json"),
    File("index.json", "json", moving=True),
    File("counter.dat", "doc"),
    File("table.dat", "doc"),
    File("matrix.dat", "doc", moving=True),
    File("careful.dat", "doc"),
    File("state.json", "json"),
    File("twin.dat", "doc", linked=True),
    File("pair.json", "json", linked=True),
    File("made.dat", "doc", gone=True),
    File("fickle.dat", "doc", fickle=True, gone=True),
    File("synced.dat", "doc"),
    File("steps.dat", "doc", moving=True),
    File("shell.dat", "doc"),
    File("mapped.dat", "doc"),
    File("events.log", "log"),
    File("audit.log", "log"),
)}

# The stage that is shaken: its writers are killed, its daemon is, it is unmounted and mounted.
WRITERS = [Role(*pair) for pair in (
    ("overwrite", "prices.json"), ("overwrite", "report.json"), ("overwrite", "index.json"),
    ("count", "counter.dat"), ("count", "counter.dat"), ("count", "counter.dat"),
    ("update", "table.dat"), ("update", "matrix.dat"),
    ("careful", "careful.dat"), ("careful", "state.json"),
    ("overwrite", "twin.dat"), ("overwrite", "pair.json"),
    ("make", "made.dat"), ("make", "fickle.dat"),
    ("sync", "synced.dat"), ("sync", "steps.dat"),
    ("shell", "shell.dat"),
    ("append", "events.log"), ("append", "events.log"), ("append", "audit.log"),
)]
READERS = ["whole"] * 8 + ["pread"] * 3 + ["mmap"] * 3 + ["nonblock"] * 2 + ["cat"] + ["follow"] * 3

# The steady one: the same kinds of programs, writers are killed, too; but one daemon serves it from the
# beginning to the end, so that it shows what a long life costs.
STEADY_WRITERS = [Role(*pair) for pair in (
    ("overwrite", "prices.json"), ("update", "table.dat"), ("careful", "careful.dat"), ("make", "fickle.dat"),
    ("map", "mapped.dat"), ("overwrite", "index.json"), ("append", "events.log"), ("overwrite", "twin.dat"),
)]
STEADY_READERS = ["whole", "whole", "pread", "mmap", "nonblock", "follow"]

MOVING = ("left", "right")


def second_name(file):
    """The other name of a file that has two."""
    return "second-" + file.name


def files_of(roles):
    """The files that these writers write, each once."""
    return [FILES[name] for name in dict.fromkeys(role.file for role in roles)]


def writers_of(roles, name):
    """The slots of the writers of a file."""
    return [slot for slot, role in enumerate(roles) if role.file == name]
