# Prints everything that the files below a directory are: two trees that print the same are the same.
import errno, hashlib, os, stat, sys

root = os.fsencode(sys.argv[1])
inodes = {}


def attempt(call, *args, **options):
    try:
        return call(*args, **options)
    except OSError as error:
        return errno.errorcode[error.errno]


def content(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def xattrs(path):
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]


def show(path):
    s = os.lstat(path)
    facts = [stat.filemode(s.st_mode), s.st_uid, s.st_gid]
    # The root of BACKING has one directory more.
    if path != root:
        facts.append(s.st_nlink)
    if not stat.S_ISDIR(s.st_mode):
        facts.append(s.st_size)
        if s.st_nlink > 1:
            facts.append(inodes.setdefault((s.st_dev, s.st_ino), path[len(root):]))
    # Only what was set by hand can be the same.
    if s.st_mtime < 1577836800:
        facts.append(s.st_mtime_ns)
    if stat.S_ISLNK(s.st_mode):
        facts.append(attempt(os.readlink, path))
    elif stat.S_ISREG(s.st_mode):
        facts.append(attempt(content, path))
    elif stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode):
        facts.append((os.major(s.st_rdev), os.minor(s.st_rdev)))
    facts.append(attempt(xattrs, path))
    print(path[len(root):], *facts)
    if stat.S_ISDIR(s.st_mode):
        names = attempt(os.listdir, path)
        if isinstance(names, str):
            print(path[len(root):], names)
            return
        for name in sorted(names):
            if not (path == root and name == b".latchfs"):
                show(os.path.join(path, name))


show(root)
