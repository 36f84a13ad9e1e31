"""Mounting and unmounting for the demo and the benchmark: every step bounded in time."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile


class Failed(Exception):
    """A mount could not be made or taken down; the text is for the user."""


def mounts():
    """(device, file system type, mountpoint) of every mount, without asking any of them."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            kind = fields[fields.index("-") + 1]
            point = fields[4]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                point = point.replace(code, char)
            found.append((fields[2], kind, point))
    return found


def filesystem_of(path):
    """The type of the file system that holds path."""
    path = os.path.realpath(path)
    kind, longest = "unknown", -1
    for _, fstype, point in mounts():
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            kind, longest = fstype, len(point)
    return kind


def run(*command, seconds=30):
    """The command's exit code and output; a failure to start or to end in time is an answer, too."""
    try:
        done = subprocess.run(
            command, timeout=seconds, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not return within {seconds} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout.strip()


def mount(command, point):
    """Runs a command that returns once `point` is mounted."""
    os.makedirs(point, exist_ok=True)
    code, said = run(*command)
    if code != 0 or all(point != mounted for _, _, mounted in mounts()):
        raise Failed(f"{' '.join(command)}: exit code {code}, {point} not mounted: {said}")


def unmount(command, point):
    """Unmounts by command. Where that fails: by force, and Failed is raised."""
    if all(point != mounted for _, _, mounted in mounts()):
        raise Failed(f"{point} is no longer mounted (did the daemon die?)")
    code, said = run(*command)
    if code == 0 and all(point != mounted for _, _, mounted in mounts()):
        return
    force_unmount(point)
    raise Failed(f"{' '.join(command)}: exit code {code}, unmounted by force: {said}")


def force_unmount(point):
    """Takes a mount down even when its daemon is dead or hangs."""
    for device, kind, mounted in mounts():
        if mounted != point:
            continue
        if kind.startswith("fuse"):
            number = device.split(":")[1]
            with contextlib.suppress(OSError), open(f"/sys/fs/fuse/connections/{number}/abort", "w") as abort:
                abort.write("1")
        if os.geteuid() == 0:
            run("umount", "-l", point)
        else:
            run("fusermount3", "-uz", point)


@contextlib.contextmanager
def workspace(parent, name):
    """A temporary directory that goes away with everything mounted in it, on signals too."""
    def stop(number, _frame):
        sys.exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    base = os.path.realpath(tempfile.mkdtemp(prefix=f"latchfs-{name}.", dir=parent))
    try:
        yield base
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for _, _, point in reversed(mounts()):
            if point.startswith(base + "/"):
                force_unmount(point)
        if any(point.startswith(base + "/") for _, _, point in mounts()):
            print(f"left in place, something is still mounted there: {base}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)
