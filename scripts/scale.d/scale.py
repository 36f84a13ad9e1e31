"""Measures a large tree on a latchfs mount. Started by scripts/scale, whose header says what and how."""

import argparse
import hashlib
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import fsmount  # noqa: E402

BYTES_PER_INODE = 600
DESCRIPTORS = 1024
# Below so many inodes the daemon does not give memory back, and its other memory weighs more.
FEW = 100_000
# One program on one tree: beyond this it hangs.
LIMIT = 1800
DEPTH = 2000
IS_ROOT = os.geteuid() == 0


def note(text):
    """For the person watching."""
    print(f"scale: {text}", file=sys.stderr, flush=True)


class Report:
    """Rows of the table, and which of them are over a limit."""

    def __init__(self):
        self.rows = []
        self.failed = False

    def add(self, case, bare, mount, remark="", good=True):
        """A row; what is not good is marked, and makes the run fail."""
        if not good:
            self.failed = True
            mount = f"FAILED: {mount}"
        self.rows.append((case, bare, mount, remark))
        note(f"{case}: bare {bare or '-'}, mount {mount} {f'({remark})' if remark else ''}")

    def show(self, args):
        """Prints all rows as it was asked for."""
        if args.rows:
            for row in self.rows:
                print(" | ".join(("scale", *row)))
        elif args.table:
            print("| | bare | mount | |\n|---|---|---|---|")
            for row in self.rows:
                print(f"| {' | '.join(row)} |")


def number(value):
    """With thousands separators."""
    return f"{value:,.0f}"


def make_tree(root, files):
    """files empty files in directories of 100, those in groups of 100."""
    os.mkdir(root)
    for d in range((files + 99) // 100):
        group = os.path.join(root, f"group-{d // 100:03}")
        if d % 100 == 0:
            os.mkdir(group)
        path = os.path.join(group, f"directory-{d:05}")
        os.mkdir(path)
        fd = os.open(path, os.O_RDONLY)
        for n in range(min(100, files - d * 100)):
            os.close(os.open(f"file-{d:05}-{n:03}.txt", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)


def make_wide(root, entries):
    """A directory with many entries."""
    os.mkdir(root)
    fd = os.open(root, os.O_RDONLY)
    for n in range(entries):
        os.close(os.open(f"entry-{n:06}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def run(command, where):
    """Seconds, and the output as a sorted list of lines without order."""
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=LIMIT, check=False)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise fsmount.Failed(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.decode()[-300:]}")
    lines = sorted(done.stdout.splitlines())
    return seconds, len(lines), hashlib.sha256(b"\n".join(lines)).hexdigest()


def kernel_inodes():
    """How many inodes of FUSE the kernel has cached, on the whole machine; None if it does not tell."""
    if not IS_ROOT:
        return None
    with open("/proc/slabinfo", encoding="ascii") as table:
        found = [int(line.split()[1]) for line in table if line.startswith("fuse_inode ")]
    return found[0] if found else None


def in_cache(args, before):
    """How many inodes of the tree the kernel has cached: fewer than there are, if it ran short of memory
    or somebody dropped its caches. Those of other mounts may be among them."""
    now = kernel_inodes()
    return args.files if now is None else min(args.files, now - before)


def resident(pid):
    """Bytes of memory of the daemon."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def descriptors(pid):
    """Open descriptors of the daemon."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(value, enough, seconds=60):
    """Asks for a value until it is enough or the time is up."""
    end = time.monotonic() + seconds
    while not enough(value()) and time.monotonic() < end:
        time.sleep(0.1)
    return value()


def deep(root):
    """Makes DEPTH directories inside one another, a file in the last, and removes it all."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"""
import os
os.mkdir("deep"); os.chdir("deep")
for n in range({DEPTH}):
    os.mkdir("directory"); os.chdir("directory")
with open("file", "w") as f:
    f.write("x")
assert open("file").read() == "x" and os.listdir() == ["file"]
os.unlink("file")
for n in range({DEPTH}):
    os.chdir(".."); os.rmdir("directory")
os.chdir(".."); os.rmdir("deep")
"""], cwd=root, check=True, timeout=LIMIT)
    return time.monotonic() - began


def remove_while_creating(root):
    """rm -r of the wide directory while a program creates files beside it and in it."""
    script = """
import os, sys, time
os.mkdir("beside")
print("ready", flush=True)
count = 0
while os.path.exists("wide"):
    with open(f"beside/{count}", "w") as f:
        f.write("x")
    try:
        with open(f"wide/new {count}", "w") as f:
            f.write("x")
    except FileNotFoundError:
        pass
    count += 1
    time.sleep(0.002)
assert all(open(f"beside/{n}").read() == "x" for n in range(count))
print(count)
"""
    other = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        began = time.monotonic()
        # What is made after rm has read the directory keeps it from being empty, as anywhere.
        while os.path.exists(os.path.join(root, "wide")):
            subprocess.run(["rm", "-r", "wide"], cwd=root, timeout=LIMIT, check=False, stderr=subprocess.DEVNULL)
            if time.monotonic() - began > LIMIT:
                raise fsmount.Failed("rm -r of a directory in which files are made never ends")
        seconds = time.monotonic() - began
        if other.wait(timeout=60) != 0:
            raise fsmount.Failed("a program that created files beside rm -r failed")
    finally:
        other.kill()
        other.wait()
    subprocess.run(["rm", "-r", "beside"], cwd=root, timeout=LIMIT, check=True)
    return seconds


def forgetting(args, report, pid, before, inodes_before):
    """What the daemon gives back when the kernel forgets."""
    if not IS_ROOT:
        note("not root: what comes back when the kernel forgets is not measured")
        return
    full = resident(pid)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as drop:
        drop.write("2")
    left = settled(kernel_inodes, lambda n: n <= inodes_before + args.files // 100)
    # In so small a tree the daemon's other memory (its threads) counts for as much.
    share = 10 if args.files >= FEW else 2
    enough = before + (full - before) // share
    after = settled(lambda: resident(pid), lambda n: n <= enough)
    report.add(
        "memory of the daemon, the tree cached", "", f"{number(full / 1e6)} MB", f"{number(before / 1e6)} MB when mounted")
    report.add(
        "memory of the daemon after drop_caches", "", f"{number(after / 1e6)} MB",
        f"{number(max(left - inodes_before, 0))} inodes cached; at most {number(enough / 1e6)} MB", after <= enough)


def measure(args, base, report):
    """Everything, on the bare directory and on a mount of it."""
    backing, point, empty = (os.path.join(base, name) for name in ("backing", "mnt", "empty"))
    os.mkdir(backing)
    os.mkdir(empty)
    note(f"making {number(args.files)} files")
    make_tree(os.path.join(backing, "tree"), args.files)
    make_wide(os.path.join(backing, "wide"), args.files // 10)
    latchfs = os.environ["LATCHFS"]
    fsmount.mount([latchfs, "mount", "--log-file", os.path.join(base, "log"), backing, point], point)
    with open(os.path.join(backing, ".latchfs", "lock"), encoding="ascii") as lock:
        pid = int(lock.readline())
    before, inodes_before = resident(pid), kernel_inodes()
    most = descriptors(pid)

    programs = [
        ("find", ["find", "."]),
        ("find -ls", ["find", ".", "-ls"]),
        ("du", ["du", "-a", "."]),
        ("rsync -n", ["rsync", "-n", "-a", "--out-format=%n %l %M", "./", empty + "/"]),
        ("rsync -n, nothing to send", ["rsync", "-n", "-a", "--out-format=%n", backing + "/tree/", "./"]),
    ]
    per_inode = cached = None
    for name, command in programs:
        where = (os.path.join(backing, "tree"), os.path.join(point, "tree"))
        bare_seconds, bare_lines, bare = run(command, where[0])
        seconds, lines, seen = run(command, where[1])
        same = bare == seen and (lines == 0 if "nothing" in name else lines > args.files)
        report.add(
            name, f"{bare_seconds:.1f} s", f"{seconds:.1f} s",
            f"{number(lines)} lines, the same" if same else f"{lines} lines, not the {bare_lines} of bare", same)
        most = max(most, descriptors(pid))
        if name == "find -ls":
            cached = in_cache(args, inodes_before)
            for _ in range(3):
                if cached >= args.files * 0.9:
                    break
                note(f"the kernel has cached {number(cached)} inodes only: again")
                run(command, where[1])
                cached = in_cache(args, inodes_before)
            per_inode = (resident(pid) - before) / max(cached, 1)
    report.add(
        "memory of the daemon per cached inode", "", f"{number(per_inode)} bytes",
        f"{number(cached)} inodes; at most {BYTES_PER_INODE}", per_inode <= BYTES_PER_INODE)
    forgetting(args, report, pid, before, inodes_before)

    seconds, lines, seen = run(["ls", "-U"], os.path.join(point, "wide"))
    bare_seconds, _, bare = run(["ls", "-U"], os.path.join(backing, "wide"))
    same = seen == bare and lines == args.files // 10
    report.add(f"ls -U, {number(lines)} entries", f"{bare_seconds:.1f} s", f"{seconds:.1f} s", "", same)
    report.add(
        f"rm -r, {number(lines)} entries", "", f"{remove_while_creating(point):.1f} s",
        "while another program creates files in it")
    report.add(f"{number(DEPTH)} directories deep", f"{deep(backing):.1f} s", f"{deep(point):.1f} s", "")
    most = max(most, descriptors(pid))
    report.add("descriptors of the daemon", "", number(most), f"below {number(DESCRIPTORS)}", most < DESCRIPTORS)

    fsmount.unmount([latchfs, "umount", point], point)


def main():
    """Exit code 0: within the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--rows", action="store_true")
    args = parser.parse_args()
    if args.files < 1000:
        parser.error("--files: at least 1000")
    report = Report()
    try:
        with fsmount.workspace(args.dir, "scale") as base:
            os.chmod(base, 0o755)
            measure(args, base, report)
            note("cleaning up")
    except (fsmount.Failed, subprocess.SubprocessError, OSError) as error:
        report.add("the run itself", "", str(error).replace("|", "/"), "", False)
    report.show(args)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
