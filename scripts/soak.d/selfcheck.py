"""Shows, before each run, that what judges it can fail."""

import os
import tempfile

import board
import cast
import samples
import versions
from verify import Verifier


def check(good, text):
    """A checker that can't fail proves nothing."""
    if not good:
        raise OSError(f"self-check: {text}")


def torn(name, form, data):
    """Whether these bytes are taken for no version."""
    try:
        versions.parse(name, form, data)
    except versions.Torn:
        return True
    return False


def contents():
    """Half of a version, two of them mixed, another file's."""
    first, second = (versions.doc("table.dat", 1, number, 9000) for number in (1, 2))
    check(not torn("table.dat", "doc", first), "a whole version")
    for data in (b"", first[:5000], first[:4000] + second[4000:], first + b"x", second[:64] + first[64:]):
        check(torn("table.dat", "doc", data), f"{len(data)} bytes are no version")
    check(torn("twin.dat", "doc", first), "the version of another file")


def flatness():
    """A daemon that grows, and one that keeps descriptors."""
    def life(memory, descriptors):
        return [{
            "seconds": second, "mount": "m", "life": 1, "resting": int(second % 30 == 20), "rss_kib": memory(second),
            "descriptors": descriptors(second)} for second in range(120)]
    check(samples.judge(life(lambda s: 9000, lambda s: 30))[1] == 0, "a flat life")
    check(samples.judge(life(lambda s: 9000 + 150 * s, lambda s: 30))[1] == 1, "memory that grows")
    check(samples.judge(life(lambda s: 9000, lambda s: 30 + s))[1] == 1, "descriptors that stay")


def verifier():
    """A version that was acknowledged and is gone, one that was never closed, a record that is missing."""
    with tempfile.TemporaryDirectory() as base:
        found = []
        work = os.path.join(base, "work", cast.MOVING[0])
        os.makedirs(work)
        roles = [cast.Role("update", "table.dat"), cast.Role("append", "events.log")]
        shared = board.Board(os.path.join(base, "board"), create=True)
        looker = Verifier(base, base, roles, shared, lambda kind, detail: found.append(kind))
        for slot, acked in ((0, 5), (1, 3)):
            shared.programs[slot][board.ACKED] = shared.programs[slot][board.CLOSING] = acked

        def look(number, records):
            found.clear()
            with open(os.path.join(base, "work", "table.dat"), "wb") as file:
                file.write(versions.doc("table.dat", 0, number, 100))
            with open(os.path.join(base, "work", "events.log"), "wb") as file:
                file.write(b"".join(versions.record("events.log", 1, n, 10) for n in records))
            looker.check("self-check")
            return list(found)
        check(look(5, (1, 2, 3)) == [], "all is there")
        check(look(4, (1, 2, 3)) == ["lost"], "an older version")
        check(look(6, (1, 2, 3)) == ["leaked"], "one that was never closed")
        check(look(5, (1, 3)) == ["lost"], "a record is missing")
        check(look(5, (1, 2)) == ["lost"], "the last record is missing")
        check(look(5, (1, 3, 2)) == ["lost", "torn"], "records in another order")
        with open(os.path.join(base, "work", "events.log"), "ab") as file:
            file.write(b"events.log 1 4")
        found.clear()
        looker.check("self-check")
        check("torn" in found, "a part of a record")


def main():
    """All of it."""
    contents()
    flatness()
    verifier()
