"""All that can be told of a tree, one line a file, for comparing two trees.

As a program: manifest.py DIRECTORY [SINCE] prints it; manifest.py --self-test shows that it tells every
single difference that it is there to tell.

A line has: path, type, mode, owner, group, links and the first path of the same file, size (not of a
directory), whether it has holes, time of modification, target or device, extended attributes (POSIX ACLs
and capabilities are among them), SHA-256. Times since SINCE (seconds) read 'now': two runs of one
program do not happen at one moment.
"""

import hashlib
import os
import stat
import sys

HOLE = 64 * 1024  # a file is called sparse if at least this much of it is not allocated


def _content(path):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _attributes(path):
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        return f"({error.strerror})"
    return ",".join(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}" for name in names)


def manifest(top, since=float("inf")):
    """The lines for everything below `top`, sorted by path."""
    lines, first = [], {}
    paths = [os.fsencode(top)]
    for folder, folders, files in os.walk(os.fsencode(top)):
        paths += (os.path.join(folder, name) for name in folders + files)
    for path in sorted(paths):
        name = os.path.relpath(path, os.fsencode(top)).decode("utf-8", "backslashreplace")
        about = os.lstat(path)
        kind = stat.S_IFMT(about.st_mode)
        regular = stat.S_ISREG(about.st_mode)
        fields = [repr(name), f"{about.st_mode:o}", f"{about.st_uid}:{about.st_gid}", f"links={about.st_nlink}"]
        if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
            fields.append(f"as={first.setdefault((about.st_dev, about.st_ino), name)!r}")
        if not stat.S_ISDIR(about.st_mode):
            fields.append(f"size={about.st_size}")
        if regular and about.st_size - about.st_blocks * 512 >= HOLE:
            fields.append("sparse")
        fields.append("now" if about.st_mtime >= since else f"mtime={about.st_mtime_ns}")
        if kind == stat.S_IFLNK:
            fields.append(f"to={os.readlink(path)!r}")
        if kind in (stat.S_IFBLK, stat.S_IFCHR):
            fields.append(f"device={about.st_rdev}")
        fields.append(f"xattrs={_attributes(path)}")
        if regular:
            try:
                fields.append(_content(path))
            except PermissionError:
                fields.append("(unreadable)")
        lines.append(" ".join(fields))
    return lines


def self_test():
    """Makes two equal trees, spoils one in every way, and must see each."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        def fresh(name):
            tree = os.path.join(top, name)
            subprocess.run(["rm", "-rf", tree], check=True)
            os.makedirs(f"{tree}/d")
            for file, text in (("f", "content"), ("g", "content"), ("d/h", "")):
                with open(f"{tree}/{file}", "w") as out:
                    out.write(text)
            os.symlink("f", f"{tree}/l")
            os.link(f"{tree}/g", f"{tree}/g2")
            os.mkfifo(f"{tree}/p")
            with open(f"{tree}/s", "w") as out:
                out.truncate(1 << 20)
            os.setxattr(f"{tree}/f", "user.a", b"b")
            for path in ("f", "g", "d/h", "p", "s", "d", "."):
                os.utime(f"{tree}/{path}", ns=(1, 1))
            os.utime(f"{tree}/l", ns=(1, 1), follow_symlinks=False)
            return tree

        one = manifest(fresh("one"))
        assert one == manifest(fresh("two")), "equal trees differ"
        spoil = {
            "content": "printf CONTENT > f; touch -d @0.000000001 f",
            "size": "printf x > d/h; touch -d @0.000000001 d/h",
            "mode": "chmod 600 f",
            "directory mode": "chmod 700 d; touch -d @0.000000001 d",
            "set-user-id": "chmod u+s f",
            "time": "touch -d @1 f",
            "a nanosecond": "touch -d @0.000000002 f",
            "time of a link": "touch -h -d @1 l",
            "target": "ln -sfn g l; touch -h -d @0.000000001 l; touch -d @0.000000001 .",
            "missing": "rm d/h; touch -d @0.000000001 d",
            "more": ": > x; touch -d @0.000000001 x .",
            "link broken": "cp -p g2 x; mv x g2; touch -d @0.000000001 .",
            "linked elsewhere": "ln -f f g2; touch -d @0.000000001 .",
            "type": "rm p; mkdir p; touch -d @0.000000001 p .",
            "holes filled": "cp --sparse=never s x; cat x > s; rm x; touch -d @0.000000001 s .",
            "attribute": "setfattr -n user.a -v c f",
            "attribute gone": "setfattr -x user.a f",
            "acl": "setfacl -m u:1:r f",
            "default acl": "setfacl -d -m u:1:r d",
        }
        if os.geteuid() == 0:
            spoil |= {"owner": "chown 1 f", "group": "chgrp 1 f", "owner of a link": "chown -h 1 l",
                      "capability": "setcap cap_net_raw+ep f", "trusted": "setfattr -n trusted.a -v c f"}
        for what, how in spoil.items():
            tree = fresh("two")
            subprocess.run(["sh", "-ec", how], cwd=tree, check=True)
            assert manifest(tree) != one, f"not seen: {what}"
        print(f"{len(spoil)} kinds of difference seen")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    else:
        print("\n".join(manifest(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf"))))
