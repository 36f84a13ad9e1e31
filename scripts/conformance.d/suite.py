"""What the Python parts of scripts/conformance share: file systems on loop devices, latchfs mounts,
and what to check of a daemon. Everything is below CONFORMANCE_WORK and bounded in time."""

import contextlib
import grp
import os
import pwd
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import fsmount  # noqa: E402

WORK = os.environ["CONFORMANCE_WORK"]
LATCHFS = os.environ["LATCHFS"]
FAST = bool(os.environ.get("CONFORMANCE_FAST"))
USER = os.environ["LATCHFS_TEST_USER"]
KINDS = ("ext4", "xfs")

MIB = 1024 * 1024

# What fuser logs when it answers the kernel's FUSE_INTERRUPT (with ENOSYS, always) after the request that was
# to be interrupted has been answered.
HARMLESS = re.compile(r"fuser::reply\] Failed to send FUSE reply: No such file or directory")


def row(suite, case, bare, mount, note=""):
    """One row of the table."""
    cells = [re.sub(r"\s+", " ", str(cell).replace("|", "/")).strip() for cell in (suite, case, bare, mount, note)]
    print(" | ".join(cells), flush=True)


def say(*words):
    """For the person watching."""
    print("   ", *words, file=sys.stderr, flush=True)


def run(*command, seconds=60, user=None, cwd=None, env=None):
    """(exit code, output) of a command; 124 if it had to be killed, with all that it had started."""
    who = {}
    if user:
        entry = pwd.getpwnam(user)
        groups = os.getgrouplist(user, entry.pw_gid)
        who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", cwd=cwd, env=dict(os.environ, **(env or {})), process_group=0, **who)
    try:
        said, _ = child.communicate(timeout=seconds)
        return child.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        # What is stuck in a hung mount does not even die.
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = child.communicate(timeout=10)
            return 124, f"{said}\nnot done within {seconds} s"
        return 124, f"not done within {seconds} s, and can't be killed"


def check(*command, seconds=60):
    """The output of a command that has to succeed."""
    code, said = run(*command, seconds=seconds)
    if code != 0:
        raise fsmount.Failed(f"{' '.join(command)}: exit code {code}: {said}")
    return said


@contextlib.contextmanager
def filesystem(kind, name="", size=1024 * MIB):
    """A fresh file system on a loop device; yields where it is mounted."""
    place = os.path.join(WORK, f"{name or 'fs'}-{kind}")
    image = place + ".image"
    with open(image, "wb") as file:
        file.truncate(size)
    check(*{"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}[kind], image)
    os.makedirs(place, exist_ok=True)
    check("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        check("umount", place)
        os.unlink(image)


class Mount:
    """A latchfs mount of a directory."""

    def __init__(self, backing, point, log, user):
        self.backing, self.point, self.log, self.user = backing, point, log, user

    @property
    def daemon(self):
        """Its process."""
        with open(os.path.join(self.backing, ".latchfs/lock"), encoding="utf-8") as file:
            return int(file.readline())

    def alive(self):
        """Does the daemon still run?"""
        try:
            with open(f"/proc/{self.daemon}/status", encoding="utf-8") as file:
                return "State:\tZ" not in file.read()
        except OSError:
            return False

    def usage(self):
        """(resident KiB, open file descriptors, threads) of the daemon."""
        with open(f"/proc/{self.daemon}/status", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file)
        descriptors = len(os.listdir(f"/proc/{self.daemon}/fd"))
        return int(fields["VmRSS"].split()[0]), descriptors, int(fields["Threads"])

    def complaints(self):
        """The lines of the log that name a bug."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file
                    if ("bug:" in line or "panicked" in line or " ERROR" in line) and not HARMLESS.search(line)]


@contextlib.contextmanager
def latchfs(backing, *options, user=None, name="mnt"):
    """Mounts a directory, by root with allow_other and dev and suid, or by an ordinary user; yields a Mount. At the
    end it has to unmount, and its log must name no bug."""
    point = os.path.join(WORK, name)
    log = os.path.join(WORK, name + ".log")
    os.makedirs(point, exist_ok=True)
    with open(log, "a", encoding="utf-8"):
        pass
    command = [LATCHFS, "mount", "--log-file", log, *options]
    if user:
        entry = pwd.getpwnam(user)
        for path in (point, log, backing):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    else:
        command += ["-o", "allow_other,dev,suid"]
    code, said = run(*command, backing, point, user=user)
    if code != 0:
        raise fsmount.Failed(f"{' '.join(command)}: exit code {code}: {said}")
    mount = Mount(backing, point, log, user)
    try:
        yield mount
    finally:
        code, said = run(LATCHFS, "umount", point, user=user)
        if code != 0:
            fsmount.force_unmount(point)
            raise fsmount.Failed(f"latchfs umount: exit code {code}: {said}")
    complaints = mount.complaints()
    if complaints:
        raise fsmount.Failed(f"{log}: {complaints[0]} ({len(complaints)} lines)")
    os.unlink(log)


def group_of(user):
    """The name of a user's own group."""
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def drop_caches():
    """Has the kernel forget every inode and name that nobody uses."""
    with open("/proc/sys/vm/drop_caches", "w", encoding="utf-8") as file:
        file.write("3")
