"""A stage: a BACKING, its mount, and the programs that work there until they are stopped or killed."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import board
import cast
import fsmount
import versions
from verify import Verifier

HERE = os.path.dirname(os.path.abspath(__file__))
# For whatever must happen: far more than a loaded machine takes.
PATIENCE = 60
STUCK = 120
CONFIG = '[[rule]]\nmatch = "*.log"\npolicy = "append"\n'


class Stage:
    """One directory with everything on it. `latchfs` is None on a bare one."""

    def __init__(self, base, name, options, violations, roles, readers):
        self.name, self.options, self.violations, self.roles = name, options, violations, roles
        self.base = os.path.join(base, name)
        self.backing, self.notes = (os.path.join(self.base, part) for part in ("backing", "notes"))
        bare = options.latchfs is None
        self.point = self.backing if bare else os.path.join(self.base, "mnt")
        self.bare = bare
        for directory in (self.base, self.backing, self.notes):
            os.mkdir(directory)
        self.board = board.Board(os.path.join(self.notes, "board"), create=True)
        self.random = random.Random(f"{options.seed} {name}")
        self.verifier = Verifier(self.backing, self.notes, roles, self.board, self.wrong)
        self.children = {}
        self.programs = [("writer", role.kind) for role in roles] + [("reader", how) for how in readers]
        self.programs.append(("mischief", None))
        self.pid, self.life = 0, 0
        self.kills = self.crashes = self.remounts = self.deaths = 0
        self.event = ""
        self.moment = "at work"
        self.gates = 0

    def wrong(self, kind, detail):
        """A violation that the stage itself has seen."""
        self.violations.note(kind, self.name, detail, self.moment)

    # --- the mount

    def prepare(self):
        """The first version of every file."""
        work = os.path.join(self.backing, "work")
        os.makedirs(os.path.join(work, cast.MOVING[0]))
        for file in cast.files_of(self.roles):
            path = os.path.join(work, cast.MOVING[0] if file.moving else "", file.name)
            slot = cast.writers_of(self.roles, file.name)[0]
            with open(path, "wb") as opened:
                if file.form == "json":
                    opened.write(json.dumps(versions.json_doc(file.name, slot, 0, 3000)).encode())
                elif file.form == "doc":
                    opened.write(versions.doc(file.name, slot, 0, versions.FIXED - versions.HEADER))
            if file.linked:
                os.link(path, os.path.join(os.path.dirname(path), cast.second_name(file)))
        config = os.path.join(self.base, "config.toml")
        with open(config, "w", encoding="ascii") as file:
            file.write(CONFIG)

    def mount(self):
        """Until it serves; the programs hear of it by an even generation."""
        if not self.bare:
            command = [
                self.options.latchfs, "mount", "--config", os.path.join(self.base, "config.toml"),
                "--log-file", os.path.join(self.base, "log"), "--lock-timeout", "1m", "--unmount-timeout", "3s",
                "--kept-max-size", "32MiB"]
            if self.options.supervise:
                command.append("--supervise")
            fsmount.mount([*command, self.backing, self.point], self.point)
            self.pid = self.daemon()
        self.life += 1

    def daemon(self):
        """The pid of the one that serves BACKING."""
        with open(os.path.join(self.backing, ".latchfs", "lock"), encoding="ascii") as lock:
            return int(lock.readline())

    def down(self):
        """From here on calls may fail."""
        self.board.stage[board.GENERATION] |= 1

    def up(self):
        """From here on they may not."""
        self.board.stage[board.GENERATION] += 1

    def mounted(self):
        """Whether something is, dead or alive."""
        return any(point == self.point for _, _, point in fsmount.mounts())

    def gone(self, pid):
        """Whether a process has ended (it may be a zombie of somebody else's)."""
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def until(self, what, condition, seconds=PATIENCE):
        """Waits for it. Failed, if it does not come."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise fsmount.Failed(f"{self.name}: not within {seconds} s: {what}")
            time.sleep(0.02)

    # --- the programs

    def start(self, slot):
        """The program of a slot, in a process group of its own."""
        program, what = self.programs[slot]
        command = [
            sys.executable, "-B", os.path.join(HERE, program + ".py"), "--root", self.point, "--notes", self.notes,
            "--violations", self.violations.path, "--slot", str(slot), "--seed", str(self.options.seed),
            "--pace", str(self.options.pace), "--roles", "steady" if self.roles is cast.STEADY_WRITERS else "main"]
        if what:
            command.append(what)
        self.board.programs[slot][board.PARKED] = 0
        self.board.programs[slot][board.WAITING] = 0
        self.children[slot] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            stderr=open(os.path.join(self.notes, f"stderr-{slot}"), "ab"))

    def start_all(self):
        """Every program of the stage."""
        for slot in range(len(self.programs)):
            self.start(slot)

    def look_after(self):
        """Programs that died by themselves, or hang, are violations; they are started again."""
        now = int(time.monotonic() * 1000)
        for slot, child in list(self.children.items()):
            code = child.poll()
            if code is None:
                since = self.board.programs[slot][board.WAITING]
                if since and now - since > STUCK * 1000:
                    self.wrong("stuck", f"{self.programs[slot]} in a call for {STUCK} s")
                    self.kill(slot)
                continue
            if code == -signal.SIGBUS and self.programs[slot][1] in ("mmap", "map"):
                # Memory mapped from a daemon that is dead.
                self.deaths += 1
            else:
                with open(os.path.join(self.notes, f"stderr-{slot}"), encoding="utf-8", errors="replace") as said:
                    self.wrong("died", f"{self.programs[slot]}: exit code {code}: {said.read()[-400:]}")
            self.start(slot)

    def kill(self, slot):
        """SIGKILL to the program of a slot and all that it has started."""
        child = self.children[slot]
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait(timeout=PATIENCE)

    def kill_one(self):
        """One writer, wherever it is; the next one of its slot starts at once."""
        slot = self.random.randrange(len(self.roles))
        self.kill(slot)
        self.kills += 1
        self.start(slot)

    def park(self):
        """Until every program has closed what it had open, and waits."""
        self.gates += 1
        self.board.stage[board.GATE] = self.gates

        def all_parked():
            self.look_after()
            return all(self.board.programs[slot][board.PARKED] == self.gates for slot in self.children)
        self.until("all programs wait at the gate", all_parked, PATIENCE + STUCK)

    def release(self):
        """They go on."""
        self.board.stage[board.GATE] = 0

    def stop(self):
        """All programs end by themselves."""
        self.board.stage[board.GATE] = 0
        self.board.stage[board.STOP] = 1
        for slot, child in self.children.items():
            try:
                code = child.wait(timeout=PATIENCE + STUCK)
                if code not in (0, -signal.SIGBUS):
                    self.wrong("died", f"{self.programs[slot]}: exit code {code} at the end")
            except subprocess.TimeoutExpired:
                self.wrong("stuck", f"{self.programs[slot]} does not end")
                self.kill(slot)
        self.children = {}

    def stop_now(self):
        """Whatever still runs."""
        for slot in list(self.children):
            try:
                self.kill(slot)
            except subprocess.TimeoutExpired:
                print(f"soak: process {self.children[slot].pid} does not die", file=sys.stderr)
        self.children = {}

    # --- what is done to the mount

    def store_is_empty(self, seconds=10):
        """Nothing under way is left in .latchfs; the last descriptors may still be on their way."""
        end = time.monotonic() + seconds
        while self.verifier.store() and time.monotonic() < end:
            time.sleep(0.05)
        left = self.verifier.store()
        if left:
            self.wrong("left", f"in .latchfs: {left[:5]} ({len(left)} of them)")

    def look(self):
        """BACKING while nothing is under way; logs that were moved away are removed once they were read."""
        self.store_is_empty()
        for name in self.verifier.check(self.moment):
            os.unlink(os.path.join(self.point if self.mounted() else self.backing, name))

    def crash(self):
        """kill -9 of the daemon; what it left must be right before and after latchfs puts it right."""
        self.moment, self.event = "daemon killed", "crash"
        by_hand = self.crashes % 2 == 0 and not self.options.supervise
        self.down()
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        self.until("the killed daemon is gone", lambda: self.gone(pid))
        if self.options.supervise:
            self.until("another daemon serves", lambda: self.serves_again(pid))
            self.pid, self.life = self.daemon(), self.life + 1
        else:
            self.verifier.check(self.moment, recovered=False)
            self.command("umount", self.point)
            if by_hand:
                self.command("recover", self.backing)
                self.look()
            self.mount()
        self.after(looked=by_hand)
        self.crashes += 1

    def serves_again(self, pid):
        """The supervisor has mounted it again."""
        try:
            return self.daemon() not in (pid, 0) and not self.gone(self.daemon()) and os.path.isdir(
                os.path.join(self.point, "work"))
        except (OSError, ValueError):
            return False

    def remount(self):
        """Unmounts, by each of its ways, while programs are at work, and mounts again."""
        self.moment, self.event = "unmounted", "remount"
        way = self.remounts % 3
        pid = self.pid
        if way == 2:
            # Plain umount does not take away what is in use.
            self.park()
        self.down()
        if way == 0:
            self.command("umount", self.point)
        elif way == 1:
            os.kill(pid, signal.SIGTERM)
        else:
            tool = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
            self.until("it is not busy", lambda: fsmount.run(*tool, self.point)[0] == 0)
        self.until("its daemon is gone", lambda: self.gone(pid))
        if self.mounted():
            raise fsmount.Failed(f"{self.name}: still mounted after the end of its daemon")
        self.look()
        self.mount()
        if way == 2:
            self.release()
        self.after(looked=True)
        self.remounts += 1

    def after(self, looked):
        """It is mounted again. What was not looked at while nothing ran is looked at now."""
        self.up()
        if not looked:
            self.park()
            self.look()
            self.release()
        self.moment = "at work"

    def rest(self):
        """All programs wait, and BACKING is looked at, under the mount."""
        moment, self.moment = self.moment, "at rest"
        self.park()
        if self.bare:
            self.verifier.check(self.moment)
        else:
            self.look()
        self.event = "rest"
        time.sleep(2.5)
        self.release()
        self.moment = moment

    def command(self, name, *arguments):
        """One of latchfs's own, which must not fail."""
        code, said = fsmount.run(self.options.latchfs, name, *arguments, seconds=PATIENCE)
        if code != 0:
            raise fsmount.Failed(f"{self.name}: latchfs {name}: exit code {code}: {said}")

    def finish(self):
        """All programs have stopped: unmounts, and looks once more."""
        self.moment = "at the end"
        if not self.bare:
            fsmount.unmount([self.options.latchfs, "umount", self.point], self.point)
            self.until("its daemon is gone", lambda: self.gone(self.pid))
        self.look()
        self.verifier.counters(self.moment)

    # --- numbers

    def total(self, index):
        """Of all programs."""
        return sum(part[index] for part in self.board.programs)

    def errors(self, table):
        """Counts by the name of the error."""
        counts = {}
        for number, name in errno.errorcode.items():
            count = self.total(table + number)
            if count:
                counts[name] = count
        return counts

    def warnings(self):
        """Lines of the daemon's log that are errors; not that an answer came too late for a
        killed program, or that a killed daemon was started again."""
        try:
            with open(os.path.join(self.base, "log"), encoding="utf-8", errors="replace") as log:
                return [line.strip() for line in log if re.search(r"\bERROR +latchfs(?!::cli::supervise)|panicked", line)]
        except FileNotFoundError:
            return []
