#!/usr/bin/env python3
"""Programs that know nothing of latchfs, run in a bare directory and in the mount: same exit status, same
output, same tree afterwards, in the mount and in BACKING.

usage: clients.py BARE MOUNT [SCENARIO...]      as the user who is to run them
       clients.py --self-test

A SCENARIO is a file in clients.d, without its '.sh': a bash script (-e, pipefail) that runs in a copy of
one tree (clients.d/seed). It gets OUT, an empty directory outside of the mount; PROTECTED, which is 1 in the
mount; and FAST, which is not empty if there is little time (CONFORMANCE_FAST). It ends with 0 in the bare directory, and prints nothing that changes from run to run.
Prints a line for each scenario, and what differs.
Exit code 0: nothing differs. 1: something does, or nothing was run. 2: wrong usage.
"""

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from manifest import manifest

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients.d")
SECONDS = 240
# Its compiler lies in the home of whoever runs this.
OF_ROOT = {"cargo"}


def scenarios():
    """Their names."""
    return sorted(name[:-3] for name in os.listdir(HERE) if name.endswith(".sh"))


def backing_of(point):
    """What a latchfs mount shows, from the table of mounts; None where it can't be told."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            if fields[4] == point and fields[fields.index("-") + 1] == "fuse.latchfs":
                return fields[fields.index("-") + 2]
    return None


# What lies in root's home is not for others.
PATH = os.environ["PATH"] if os.geteuid() == 0 else "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def run(command, cwd, environment, seconds=SECONDS):
    """(status, output); all that it started is killed if it does not end in time."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = f"not done within {seconds} s"
            os.killpg(child.pid, signal.SIGKILL)
        output.seek(0)
        return status, output.read().decode("utf-8", "backslashreplace")


def prepare(place, tag, seed=None):
    """A directory with the seed tree in it, and one outside for what else there is to do."""
    work = tempfile.mkdtemp(prefix=f"{tag}-", dir=place)
    os.chmod(work, 0o755)
    environment = dict(os.environ, LC_ALL="C.UTF-8", TZ="UTC", HOME=work)
    if seed is None:
        command = ["bash", "-euc", f"umask 022; . {HERE}/seed"]
    else:
        # By tar out of the bare directory: what is copied here is compared, too.
        command = ["bash", "-euo", "pipefail", "-c",
                   'tar -C "$0" --acls --xattrs --xattrs-include="*" --sparse --exclude=./src/pipe -c . | '
                   'tar --acls --xattrs --xattrs-include="*" -xp; mkfifo src/pipe; '
                   'chmod --reference="$0/src/pipe" src/pipe; touch -r "$0/src/pipe" src/pipe; touch -r "$0/src" src; '
                   'touch -r "$0" .', seed]
    status, said = run(command, work, environment)
    if status != 0:
        raise SystemExit(f"{work} can't be filled: {status}: {said}")
    return work


def play(name, work, out, protected):
    """Runs a scenario; returns its status, what it said, and when it began."""
    began = time.time() - 1
    home = os.path.join(out, "home")
    os.makedirs(home, exist_ok=True)
    environment = {
        "PATH": PATH, "HOME": home, "OUT": out, "PROTECTED": str(int(protected)), "FAST": os.environ.get("CONFORMANCE_FAST", ""),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC", "TMPDIR": out, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_ADVICE": "0",
        "CARGO_HOME": os.environ.get("CARGO_HOME", os.path.join(os.path.expanduser("~"), ".cargo")),
        "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", os.path.join(os.path.expanduser("~"), ".rustup")),
    }
    script = os.path.join(HERE, name + ".sh")
    status, said = run(["bash", "-euo", "pipefail", "-c", 'umask 022; . "$0"', script], work, environment)
    for path, word in ((work, "WORK"), (out, "OUT")):
        said = said.replace(path, word)
    return status, said, began


def compare(name, bare, point):
    """What differs, as lines; the first says so in short."""
    where = []
    for place, protected in ((bare, False), (point, True)):
        seed = where[0][0] if where else None
        where.append([prepare(place, name, seed), protected])
    found, results = [], []
    fresh = [manifest(work) for work, _ in where]
    found += differences("the tree before", *fresh)
    for work, protected in where:
        out = tempfile.mkdtemp(prefix=f"{name}-out-", dir=bare)
        os.chmod(out, 0o755)
        results.append((*play(name, work, out, protected), manifest(out), out))
    (bare_status, bare_said, bare_began, _, bare_out), (status, said, began, _, out) = results
    if bare_status != 0:
        found.append(f"the scenario fails in the bare directory: {bare_status}: {bare_said[-2000:]}")
    if bare_status != status:
        found.append(f"exit status {bare_status}, {status}: {said[-1500:]}")
    found += differences("output", bare_said.splitlines(), said.splitlines())
    expected = manifest(where[0][0], bare_began)
    found += differences("the tree after", expected, manifest(where[1][0], began))
    outer = [[line for line in manifest(path, since) if not line.startswith("'home")]
             for path, since in ((bare_out, bare_began), (out, began))]
    found += differences("what is outside", *outer)
    backing = backing_of(point)
    if backing and os.access(backing, os.R_OK | os.X_OK):
        found += differences("BACKING", expected, manifest(
            os.path.join(backing, os.path.basename(where[1][0])), began))
        found += differences("BACKING's store", [], [
            f"{part}/{left}" for part in ("tmp", "redo", "kept")
            for left in sorted(os.listdir(os.path.join(backing, ".latchfs", part)))])
    for path in (where[0][0], where[1][0], bare_out, out):
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            found.append(f"{path} could not be removed")
    return found


def differences(what, expected, seen):
    """A line for each that is in one only."""
    lines = difflib.unified_diff(expected, seen, lineterm="", n=0)
    return [f"{what}: {line}" for line in lines if re.match(r"[-+](?![-+]{2})", line)]


def self_test():
    """A scenario that does something else in the mount must be told by all that can be seen of it."""
    global HERE
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        shutil.copy(os.path.join(HERE, "seed"), top)
        HERE = top
        for what, how, told in (
            ("nothing", "true", []), ("its status", "exit 3", ["exit status"]), ("output", "echo x", ["output"]),
            ("a mode", "chmod 600 f", ["the tree after"]), ("a file outside", 'touch "$OUT/x"', ["what is outside"]),
        ):
            with open(os.path.join(top, "probe.sh"), "w", encoding="utf-8") as script:
                script.write(f"if [ $PROTECTED = 1 ]; then {how}; fi\n")
            found = compare("probe", top, top)
            assert {line.split(":")[0].split(" 0,")[0] for line in found} == set(told), f"{what}: {found}"
    print("every difference is told")


def main():
    arguments = sys.argv[1:]
    if arguments == ["--self-test"]:
        self_test()
        return 0
    if len(arguments) < 2 or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    bare, point = map(os.path.realpath, arguments[:2])
    failed = 0
    names = arguments[2:] or [name for name in scenarios() if os.geteuid() == 0 or name not in OF_ROOT]
    for name in names:
        began = time.monotonic()
        found = compare(name, bare, point)
        failed += bool(found)
        print(f"{name}: {'DIFFERS' if found else 'same'}, {time.monotonic() - began:.1f} s", flush=True)
        for line in found[:40]:
            print(f"    {line[:1500]}", flush=True)
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main())
