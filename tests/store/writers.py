# Four kinds of writers, each with a file of its own, over and over, until the mount is gone. Every
# version is one line repeated, so that half of one and a mixture of two can be told from a whole one.
# Before and after each save the number goes to a record outside the mount.
import os, random, sys

out = sys.argv[1]
LINES = 500


def content(kind, number):
    return ("%s %08d\n" % (kind, number)).encode() * LINES


def overwrite(path, data):
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        file.write(data[len(data) // 2 :])


def update(path, data):
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        for at in range(0, len(data), 3000):
            file.seek(at)
            file.write(data[at : at + 3000])


def create(path, data):
    if os.path.exists(path):
        os.unlink(path)
    overwrite(path, data)


kinds = {"overwrite": overwrite, "update": update, "linked": overwrite, "create": create}
children = []
for kind, save in kinds.items():
    if os.fork() == 0:
        record = os.open(os.path.join(out, kind), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        number = int(sys.argv[2])
        try:
            while True:
                number += 1
                os.write(record, b"begin %d\n" % number)
                save(kind, content(kind, number))
                os.write(record, b"done %d\n" % number)
        except OSError:
            os._exit(0)
for _ in kinds:
    os.wait()
