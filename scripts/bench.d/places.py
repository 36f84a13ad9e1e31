"""The places that scripts/bench measures at: the bare directory, and mounts over directories like it."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys

import fsmount

MIB = 1024 * 1024
# A measurement that takes longer hangs.
LIMIT = 300
# Every target, in the order of the table's columns.
TARGETS = ("bare", "bindfs", "passthrough", "latchfs", "latchfs-user")
TEXTS = {
    "bare": "the directory itself",
    "bindfs": "bindfs, as root",
    "passthrough": "libfuse's example, as root",
    "latchfs": "as root: the kernel reads committed versions by itself",
    "latchfs-user": "mounted by an ordinary user",
}
# Directories in which latchfs keeps one kind of promise each.
RULES = """\
[[rule]]
match = "/rename/**"
durability = "rename"

[[rule]]
match = "/none/**"
durability = "none"

[[rule]]
match = "/direct/**"
policy = "direct"
"""
DIRECTORIES = ("full", "rename", "none", "direct")


class Place:
    """A directory in which rows are measured."""

    def __init__(self, target, root, backing, options):
        self.target, self.root, self.backing, self.quick = target, root, backing, options.quick
        self.latchfs = target.startswith("latchfs")
        self.user = pwd.getpwnam(options.user) if target == "latchfs-user" else None
        self.tool = options.tool
        self.filesystem = fsmount.filesystem_of(backing)

    def path(self, *names):
        return os.path.join(self.root, *names)

    def size(self, large, small):
        return small if self.quick else large

    def mode(self, promise="full"):
        """How an update keeps a promise here: by a plain close in latchfs, elsewhere by hand."""
        return "plain" if self.latchfs else promise

    def credentials(self):
        """What subprocess needs to start a program as the user of this place."""
        if not self.user:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def run(self, *command, **more):
        """A command as the user of this place."""
        more.update(self.credentials())
        command = [str(word) for word in command]
        try:
            done = subprocess.run(command, timeout=LIMIT, text=True, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **more)
        except subprocess.TimeoutExpired:
            raise fsmount.Failed(f"{self.target}: not done within {LIMIT} s: {' '.join(command)}") from None
        if done.returncode != 0:
            raise fsmount.Failed(f"{self.target}: {' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def work(self, *arguments):
        """An operation of work.c: what it measured."""
        return json.loads(self.run(self.tool, *arguments))

    def behind(self, name, fill):
        """A file or directory made directly in the directory behind, once; its path here."""
        path = os.path.join(self.backing, name)
        if not os.path.exists(path):
            fill(path)
            if self.user:
                self.run_as_root("chown", "-R", f"{self.user.pw_uid}:{self.user.pw_gid}", path)
            os.sync()
        return self.path(name)

    @staticmethod
    def run_as_root(*command):
        subprocess.run(command, check=True)

    def file(self, name, size):
        """A file of this many bytes."""
        def fill(path):
            with open(path, "wb") as f:
                piece = b"\xa5" * min(size, MIB)
                for _ in range(max(size // MIB, 1)):
                    f.write(piece)
        return self.behind(name, fill)

    def files(self, name, count, size=7):
        """A directory with this many small files, file0 and so on, in directories of 1,000 if there are more than
        10,000."""
        def fill(path):
            os.mkdir(path)
            for number in range(count):
                place = path
                if count > 10_000:
                    place = os.path.join(path, f"dir{number // 1000}")
                    if number % 1000 == 0:
                        os.mkdir(place)
                with open(os.path.join(place, f"file{number}"), "wb") as f:
                    f.write(b"c" * size)
        return self.behind(name, fill)

    def daemon(self):
        """The process that serves the mount."""
        with contextlib.suppress(OSError, ValueError):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    with open(f"/proc/{pid}/cmdline", "rb") as f:
                        words = f.read().split(b"\0")
                    with open(f"/proc/{pid}/comm") as f:
                        name = f.read().strip()
                    if name == "latchfs" and os.fsencode(self.root) in words:
                        return int(pid)
        raise fsmount.Failed(f"{self.target}: no daemon serves {self.root}")


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")


def build_tool(base):
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "work.c")
    tool = os.path.join(base, "work")
    code, said = fsmount.run("cc", "-O2", "-o", tool, source, "-lpthread", seconds=120)
    if code != 0:
        raise fsmount.Failed(f"{source} can't be built (is a C compiler there?): {said}")
    return tool


def build_passthrough(base):
    """libfuse's example that mirrors by file descriptors: passthrough_hp where the sources have it, else
    passthrough_ll. None if there are no sources."""
    sources = "/usr/share/doc/libfuse3-dev/examples"
    for name, compiler in (("passthrough_hp.cc", ["c++", "-std=c++17"]), ("passthrough_ll.c", ["cc"])):
        source = os.path.join(sources, name)
        if not os.path.exists(source):
            continue
        tool = os.path.join(base, name.split(".")[0])
        code, flags = fsmount.run("pkg-config", "--cflags", "--libs", "fuse3")
        if code == 0:
            code, said = fsmount.run(*compiler, "-O2", "-w", "-o", tool, source, *flags.split(), "-lpthread", seconds=120)
            if code == 0:
                return tool
            print(f"{source} can't be built: {said.splitlines()[-1:]}", file=sys.stderr)
    return None


def command_of(target, backing, root, options, base):
    latchfs = [options.latchfs, "mount", "--config", os.path.join(base, "rules.toml"),
               "--log-file", os.path.join(base, f"{target}.log"), backing, root]
    if target == "bindfs":
        return ["bindfs", "--no-allow-other", backing, root]
    if target == "passthrough":
        if os.path.basename(options.passthrough) == "passthrough_hp":
            return [options.passthrough, backing, root]
        return [options.passthrough, "-o", f"source={backing}", root]
    if target == "latchfs-user":
        return ["setpriv", f"--reuid={options.user}", f"--regid={pwd.getpwnam(options.user).pw_gid}", "--clear-groups", *latchfs]
    return latchfs


def make(base, where, options):
    """All places, mounted. `where`: the directory on the file system that is measured."""
    with open(os.path.join(base, "rules.toml"), "w") as f:
        f.write(RULES)
    places = {}
    for target in options.targets:
        backing = os.path.join(where, target + ".backing")
        for directory in DIRECTORIES:
            os.makedirs(os.path.join(backing, directory))
        root = backing
        if target != "bare":
            root = os.path.join(base, target)
            os.mkdir(root)
            if target == "latchfs-user":
                log = os.path.join(base, f"{target}.log")
                open(log, "w").close()
                for path in (log, root):
                    shutil.chown(path, options.user)
                Place.run_as_root("chown", "-R", options.user, backing)
            fsmount.mount(command_of(target, backing, root, options, base), root)
        places[target] = Place(target, root, backing, options)
    os.sync()
    return places


def unmount(places, options):
    for place in places.values():
        if place.latchfs:
            fsmount.unmount([options.latchfs, "umount", place.root], place.root)
        elif place.target != "bare":
            fsmount.unmount(["umount", place.root] if os.geteuid() == 0 else ["fusermount3", "-u", place.root], place.root)


@contextlib.contextmanager
def image(base, kind, size):
    """A file system in a file, mounted; `None`: the machine's own disk, where `base` is."""
    if kind == "disk":
        yield base
        return
    path, point = os.path.join(base, "image"), os.path.join(base, kind)
    with open(path, "wb") as f:
        f.truncate(size)
    force = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[kind]
    for command in (["mkfs." + kind, "-q", force, path], ["mount", "-o", "loop", path, point]):
        os.makedirs(point, exist_ok=True)
        code, said = fsmount.run(*command, seconds=120)
        if code != 0:
            raise fsmount.Failed(f"{' '.join(command)}: {said}")
    os.chmod(point, 0o755)
    try:
        yield point
    finally:
        fsmount.run("umount", "-l", point)
