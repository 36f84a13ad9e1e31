# Put before the scripts that run both in a bare directory and in the mount.
import ctypes, fcntl, hashlib, random, select, socket, stat, struct, traceback

libc = ctypes.CDLL(None, use_errno=True)


def attempt(call, *args, **options):
    """The result, or the name of the error."""
    try:
        return call(*args, **options)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def tell(label, call, *args, **options):
    say(label, repr(attempt(call, *args, **options)))


def by_libc(name, *args):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def write(path, content=b"content"):
    with open(path, "wb") as file:
        file.write(content)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def touch(path, flags=0, mode=0o666):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | flags, mode))


def look(path, follow=False):
    s = os.stat(path, follow_symlinks=follow)
    size = None if stat.S_ISDIR(s.st_mode) else s.st_size
    return stat.filemode(s.st_mode), s.st_uid, s.st_gid, size


def links(path):
    return os.lstat(path).st_nlink


def segments(path):
    """Where the data is, as SEEK_DATA and SEEK_HOLE tell."""
    fd = os.open(path, os.O_RDONLY)
    found, at, end = [], 0, os.fstat(fd).st_size
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            found.append(errno.errorcode[error.errno])
            break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        found.append((data, at))
    os.close(fd)
    return found


def renameat2(old, new, flags):
    by_libc("renameat2", -100, os.fsencode(old), -100, os.fsencode(new), flags)


NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanos", ctypes.c_long)]


def utimensat(path, atime, mtime, flags=0):
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    by_libc("utimensat", -100, os.fsencode(path), times, flags)


NOW, OMIT = (0, (1 << 30) - 1), (0, (1 << 30) - 2)


def fallocate(fd, mode, offset, length):
    by_libc("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def as_user(uid, gid, work, groups=()):
    """Has work() done by somebody else."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            work()
            sys.stdout.flush()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
