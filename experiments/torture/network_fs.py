"""A folder that two machines mount, as from a file server: what their caches, locks and errors are like can be chosen.

Speaks the protocol of /dev/fuse (Linux, root), so that it needs no library. Each machine is a mount of its own with its
own kernel caches; the backing folder is the server's disk. `Behaviour` says how it differs from a local disk.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, cast

(LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS) = (
    1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17,
)  # fmt: skip
(RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW, CREATE, INTERRUPT) = (
    18, 20, 25, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36,
)  # fmt: skip
DESTROY, BATCH_FORGET, RENAME2 = 38, 42, 45
ASYNC_READ, POSIX_LOCKS, BIG_WRITES, FLOCK_LOCKS, MAX_PAGES = 1, 2, 32, 1024, 1 << 22
DIRECT_IO, RENAME_NOREPLACE, MEGABYTE = 1, 1, 1 << 20
CHANGES = {CREATE: "create", WRITE: "write", FSYNC: "fsync", RENAME2: "rename", READ: "read"}
CHANGES |= {LINK: "link", MKDIR: "mkdir", UNLINK: "unlink", RENAME: "rename", OPEN: "open"}


@dataclass
class Behaviour:
    """How the file system differs from a local disk."""

    attribute_seconds: float = 0.0  # for which a machine trusts what it knows of a file, or of a name
    negative_seconds: float = 0.0  # for which it trusts that a name does not exist
    close_to_open: bool = True  # opening a file shows what another machine has closed, whatever is cached
    late_seconds: float = 0.0  # after which another machine sees a new name, in lookups and listings
    # "shared", "local" to a machine, "nothing" (they succeed), or the name of an error.
    locks: str = "shared"
    write_to_lock: bool = False  # an exclusive lock needs a file that is open for writing
    locks_of_the_dead: float = 0.0  # seconds for which those of a machine that has died are kept
    mmap: bool = True
    links: bool = True
    silly_rename: bool = False  # an open file that is removed stays as .nfsXXXX, and is stale if another machine did it
    ignore_case: bool = False
    forbidden: str = ""  # in names
    coarse_times: bool = False  # whole seconds, and no change time of its own
    clock_offset: float = 0.0  # of the server, in seconds
    rename_over_open: str = ""  # the error of replacing a file that is open anywhere
    exclusive: bool = True  # O_EXCL is atomic
    # What fails: [operation, error, the number of times it works before, the number of times it fails].
    faults: list[list[Any]] = field(default_factory=list)


class Server:
    """What the machines share: the folder, its locks, who has which file open, and what is to fail."""

    def __init__(self, folder: str, behaviour: Behaviour) -> None:
        self.folder, self.behaviour = folder, behaviour
        self.locks: dict[tuple[int, bool], list[tuple[Mount, int, int, int, int]]] = {}  # owner, type, start, end
        self.waiting: list[tuple[Mount, int, int, bool, int, int, int, int]] = []
        self.born: dict[tuple[int, bytes], tuple[Mount, float]] = {}
        self.lock = threading.RLock()
        self.counts = [0] * len(behaviour.faults)

    def fail(self, operation: str) -> None:
        """Raises the error that is due."""
        for place, (name, error, after, times) in enumerate(self.behaviour.faults):
            if name == operation:
                self.counts[place] += 1
                if after < self.counts[place] <= after + times:
                    raise OSError(getattr(errno, error), error)

    def conflict(self, mount: Mount, inode: int, is_flock: bool, owner: int, kind: int, start: int, end: int) -> Any:
        """The lock that is in the way of another one."""
        for held in self.locks.get((inode, is_flock), []):
            other = (held[0], held[1]) != (mount, owner)
            if other and held[3] <= end and start <= held[4] and 1 in (kind, held[2]):  # F_WRLCK is 1
                return held
        return None

    def set_lock(self, mount: Mount, inode: int, is_flock: bool, owner: int, kind: int, start: int, end: int) -> None:
        """Takes a lock, or for F_UNLCK gives it up, and lets others have what has become free."""
        kept = []
        for held in self.locks.get((inode, is_flock), []):
            if (held[0], held[1]) != (mount, owner) or held[4] < start or held[3] > end:
                kept.append(held)
                continue
            if held[3] < start:
                kept.append((*held[:3], held[3], start - 1))
            if held[4] > end:
                kept.append((*held[:3], end + 1, held[4]))
        if kind != 2:
            kept.append((mount, owner, kind, start, end))
        self.locks[inode, is_flock] = kept
        self.grant()

    def grant(self) -> None:
        for waiter in list(self.waiting):
            mount, unique, inode, is_flock, owner, kind, start, end = waiter
            wanted = inode, is_flock, owner, kind, start, end
            if waiter in self.waiting and self.conflict(mount, *wanted) is None:
                self.waiting.remove(waiter)
                self.set_lock(mount, *wanted)
                mount.reply(unique, b"")

    def forget(self, mount: Mount) -> None:
        """Gives up the locks of a machine that has died."""
        with self.lock:
            for key, held in self.locks.items():
                self.locks[key] = [one for one in held if one[0] is not mount]
            self.waiting = [one for one in self.waiting if one[0] is not mount]
            self.grant()


class Mount:
    """One machine's view. Nodes are the inodes of the server, each held open by its O_PATH descriptor."""

    def __init__(self, server: Server, point: str) -> None:
        self.server, self.point, self.dead = server, point, False
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.nodes = {1: os.open(server.folder, os.O_PATH | os.O_DIRECTORY)}
        self.handles: dict[int, tuple[int, int]] = {}  # descriptor -> node, flags
        self.lists: dict[int, list[tuple[bytes, int, int]]] = {}
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"sharedfs", os.fsencode(point), b"fuse.sharedfs", 0, options):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), point)

    def die(self) -> None:
        """As when the machine loses its power: what waits for the server fails, and its locks stay for a while."""
        self.dead = True
        threading.Timer(self.server.behaviour.locks_of_the_dead, self.server.forget, [self]).start()
        ctypes.CDLL(None).umount2(os.fsencode(self.point), 1)  # MNT_FORCE: the connection is aborted, though it is busy

    def serve(self) -> None:
        while not self.dead:
            try:
                if not select.select([self.device], [], [], 0.5)[0]:
                    continue
                request = os.read(self.device, MEGABYTE + 65536)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", 0) in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, code, unique, node, *_ = struct.unpack_from("<IIQQIIIHH", request)
            with self.server.lock:
                try:
                    operation = OPERATIONS.get(code)
                    if operation is None:
                        raise OSError(errno.ENOSYS, "")
                    if code in CHANGES:
                        self.server.fail(CHANGES[code])
                    answer = operation(self, node, request[40:], unique)
                except OSError as error:
                    self.reply(unique, b"", error.errno or errno.EIO)
                else:
                    if answer is not None:
                        self.reply(unique, answer)

    def reply(self, unique: int, data: bytes, error: int = 0) -> None:
        with suppress(OSError):  # it was interrupted
            os.write(self.device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)

    def revalidate(self, node: int) -> None:
        """Has the kernel of this machine forget the attributes of a file."""
        with suppress(OSError):
            os.write(self.device, struct.pack("<IiQQqq", 40, 2, 0, node, -1, 0))

    # ---- names and attributes

    def of(self, node: int) -> int:
        file = self.nodes.get(node)
        if file is None:
            raise OSError(errno.ESTALE, "")
        return file

    def checked(self, node: int) -> int:
        """The descriptor of a node that another machine has not removed."""
        file = self.of(node)
        if self.server.behaviour.silly_rename and os.fstat(file).st_nlink == 0:
            raise OSError(errno.ESTALE, "")
        return file

    def attributes(self, status: os.stat_result) -> bytes:
        how = self.server.behaviour
        # Two times of a file are whole seconds, and the change time tells no more than the time of modification.
        times = [status.st_atime_ns, status.st_mtime_ns, status.st_mtime_ns if how.coarse_times else status.st_ctime_ns]
        times = [value + int(how.clock_offset * 1e9) for value in times]
        nanoseconds = [0 if how.coarse_times else value % 10**9 for value in times]
        inode = 1 if status.st_ino == self.root_inode else status.st_ino
        size = inode, status.st_size, status.st_blocks, *(value // 10**9 for value in times)
        others = status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, 4096, 0
        return struct.pack("<QQQQQQIIIIIIIIII", *size, *nanoseconds, *others)

    @property
    def root_inode(self) -> int:
        return os.fstat(self.nodes[1]).st_ino

    def valid(self, seconds: float) -> tuple[int, int]:
        return int(seconds), int(seconds % 1 * 1e9)

    def entry(self, file: int) -> bytes:
        """Keeps a descriptor as a node, and describes it."""
        status = os.fstat(file)
        node = 1 if status.st_ino == self.root_inode else status.st_ino
        if node in self.nodes:
            os.close(file)
        else:
            self.nodes[node] = file
        seconds, part = self.valid(self.server.behaviour.attribute_seconds)
        return struct.pack("<QQQQII", node, 0, seconds, seconds, part, part) + self.attributes(status)

    def name(self, parent: int, data: bytes) -> bytes:
        """A name as the server knows it."""
        how, text = self.server.behaviour, data.split(b"\0")[0]
        if any(letter.encode() in text for letter in how.forbidden):
            raise OSError(errno.EINVAL, "")
        if how.ignore_case:
            for found in os.listdir(f"/proc/self/fd/{parent}"):
                if found.casefold() == os.fsdecode(text).casefold():
                    return os.fsencode(found)
        return text

    def is_late(self, parent: int, name: bytes) -> bool:
        """Whether another machine has made this name too recently."""
        by, when = self.server.born.get((os.fstat(parent).st_ino, name), (self, 0.0))
        return by is not self and time.monotonic() < when + self.server.behaviour.late_seconds

    def bear(self, parent: int, name: bytes) -> None:
        self.server.born[os.fstat(parent).st_ino, name] = self, time.monotonic()

    def lookup(self, node: int, data: bytes, _: int) -> bytes:
        parent = self.of(node)
        name = self.name(parent, data)
        try:
            if self.is_late(parent, name):
                raise FileNotFoundError(errno.ENOENT, "")
            return self.entry(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent))
        except FileNotFoundError:
            if not self.server.behaviour.negative_seconds:
                raise
            seconds, part = self.valid(self.server.behaviour.negative_seconds)
            return struct.pack("<QQQQII", 0, 0, seconds, 0, part, 0) + bytes(88)

    def forget(self, node: int, data: bytes, _: int) -> None:
        return None  # nodes are few

    def getattr(self, node: int, data: bytes, _: int) -> bytes:
        seconds, part = self.valid(self.server.behaviour.attribute_seconds)
        return struct.pack("<QII", seconds, part, 0) + self.attributes(os.fstat(self.checked(node)))

    def setattr(self, node: int, data: bytes, unique: int) -> bytes:
        valid, _, _, size, _, atime, mtime, _, a_part, m_part, _, mode, _, uid, gid, _ = struct.unpack_from(
            "<IIQQQQQQIIIIIIII", data
        )
        path, offset = f"/proc/self/fd/{self.checked(node)}", int(self.server.behaviour.clock_offset * 1e9)
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(path, size)
        if valid & 48:
            now, status = time.time_ns(), os.stat(path)
            first = now if valid & 128 else atime * 10**9 + a_part - offset if valid & 16 else status.st_atime_ns
            second = now if valid & 256 else mtime * 10**9 + m_part - offset if valid & 32 else status.st_mtime_ns
            os.utime(path, ns=(first, second))
        return self.getattr(node, b"", unique)

    def readlink(self, node: int, data: bytes, _: int) -> bytes:
        return os.fsencode(os.readlink("", dir_fd=self.of(node)))

    def symlink(self, node: int, data: bytes, unique: int) -> bytes:
        name, target = data.split(b"\0")[:2]
        os.symlink(target, name, dir_fd=self.of(node))
        return self.lookup(node, name, unique)

    # ---- folders

    def mkdir(self, node: int, data: bytes, unique: int) -> bytes:
        mode, umask = struct.unpack_from("<II", data)
        parent = self.of(node)
        name = self.name(parent, data[8:])
        os.mkdir(name, mode & ~umask, dir_fd=parent)
        self.bear(parent, name)
        return self.lookup(node, name, unique)

    def rmdir(self, node: int, data: bytes, _: int) -> bytes:
        parent = self.of(node)
        os.rmdir(self.name(parent, data), dir_fd=parent)
        return b""

    def opendir(self, node: int, data: bytes, _: int) -> bytes:
        folder = self.of(node)
        file = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        with os.scandir(file) as entries:
            found = [(os.fsencode(e.name), e.inode(), 4 if e.is_dir(follow_symlinks=False) else 8) for e in entries]
        self.lists[file] = [one for one in found if not self.is_late(folder, one[0])]
        return struct.pack("<QII", file, 0, 0)

    def readdir(self, node: int, data: bytes, _: int) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", data)
        out = bytearray()
        for number, (name, inode, kind) in enumerate(self.lists[handle][offset:], offset + 1):
            one = struct.pack("<QQII", inode, number, len(name), kind) + name
            one += bytes(-len(one) % 8)
            if len(out) + len(one) > size:
                break
            out += one
        return bytes(out)

    def releasedir(self, node: int, data: bytes, _: int) -> bytes:
        (handle,) = struct.unpack_from("<Q", data)
        del self.lists[handle]
        os.close(handle)
        return b""

    def is_open(self, inode: int, anywhere: bool) -> bool:
        mounts = MOUNTS if anywhere else [self]
        return any(node == inode for mount in mounts for node, _ in mount.handles.values())

    def make_room(self, parent: int, name: bytes) -> bool:
        """Before a name is removed or replaced: a file that this machine has open keeps a name, as with NFS."""
        how = self.server.behaviour
        try:
            inode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return False
        if how.rename_over_open and self.is_open(inode, anywhere=True):
            raise OSError(getattr(errno, how.rename_over_open), "")
        if how.silly_rename and self.is_open(inode, anywhere=False):
            hidden = b".nfs%016x" % inode
            os.rename(name, hidden, src_dir_fd=parent, dst_dir_fd=parent)
            SILLY[inode] = parent, hidden
            return True
        return False

    def unlink(self, node: int, data: bytes, _: int) -> bytes:
        parent = self.of(node)
        name = self.name(parent, data)
        if not self.make_room(parent, name):
            os.unlink(name, dir_fd=parent)
        return b""

    def rename(self, node: int, data: bytes, _: int) -> bytes:
        (target,) = struct.unpack_from("<Q", data)
        return self.rename_to(node, target, 0, data[8:])

    def rename2(self, node: int, data: bytes, _: int) -> bytes:
        target, flags, _ = struct.unpack_from("<QII", data)
        return self.rename_to(node, target, flags, data[16:])

    def rename_to(self, node: int, target: int, flags: int, names: bytes) -> bytes:
        old, new = names.split(b"\0")[:2]
        source, folder = self.of(node), self.of(target)
        old, new = self.name(source, old), self.name(folder, new)
        if flags == RENAME_NOREPLACE and new in map(os.fsencode, os.listdir(f"/proc/self/fd/{folder}")):
            raise FileExistsError(errno.EEXIST, "")
        if old != new:
            self.make_room(folder, new)
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=folder)
        self.bear(folder, new)
        return b""

    def link(self, node: int, data: bytes, unique: int) -> bytes:
        if not self.server.behaviour.links:
            raise OSError(errno.EOPNOTSUPP, "")
        (old,) = struct.unpack_from("<Q", data)
        folder = self.of(node)
        name = self.name(folder, data[8:])
        os.link(f"/proc/self/fd/{self.checked(old)}", name, dst_dir_fd=folder, follow_symlinks=True)
        self.bear(folder, name)
        return self.lookup(node, name, unique)

    # ---- files

    def opened(self, node: int, flags: int) -> bytes:
        kept = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_APPEND)
        file = os.open(f"/proc/self/fd/{self.checked(node)}", kept | os.O_CLOEXEC)
        self.handles[file] = node, flags
        if self.server.behaviour.close_to_open:
            self.revalidate(node)
        return struct.pack("<QII", file, 0 if self.server.behaviour.mmap else DIRECT_IO, 0)

    def open(self, node: int, data: bytes, _: int) -> bytes:
        return self.opened(node, struct.unpack_from("<I", data)[0])

    def create(self, node: int, data: bytes, _: int) -> bytes:
        flags, mode, umask, _ = struct.unpack_from("<IIII", data)
        parent = self.of(node)
        name = self.name(parent, data[16:])
        if not self.server.behaviour.exclusive and self.is_late(parent, name):
            flags = flags & ~os.O_EXCL | os.O_TRUNC
        made = os.open(name, flags & ~os.O_APPEND | os.O_CLOEXEC, mode & ~umask, dir_fd=parent)
        os.close(made)
        self.bear(parent, name)
        entry = self.entry(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent))
        return entry + self.opened(struct.unpack_from("<Q", entry)[0], flags & ~os.O_TRUNC)

    def handle(self, data: bytes) -> int:
        (file,) = struct.unpack_from("<Q", data)
        if self.server.behaviour.silly_rename and os.fstat(file).st_nlink == 0:
            raise OSError(errno.ESTALE, "")
        return cast(int, file)

    def read(self, node: int, data: bytes, _: int) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", data)
        return os.pread(self.handle(data), size, offset)

    def write(self, node: int, data: bytes, _: int) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", data)
        return struct.pack("<II", os.pwrite(self.handle(data), data[40 : 40 + size], offset), 0)

    def fsync(self, node: int, data: bytes, _: int) -> bytes:
        self.handle(data)
        return b""

    def flush(self, node: int, data: bytes, _: int) -> bytes:
        file, _, _, owner = struct.unpack_from("<QIIQ", data)
        if self.handles[file][1] & os.O_ACCMODE != os.O_RDONLY:
            self.server.fail("close")
        self.server.set_lock(self, node, False, owner, 2, 0, 2**63 - 1)
        return b""

    def release(self, node: int, data: bytes, _: int) -> bytes:
        file, _, flags, owner = struct.unpack_from("<QIIQ", data)
        if flags & 2:
            self.server.set_lock(self, node, True, owner, 2, 0, 2**63 - 1)
        del self.handles[file]
        os.close(file)
        if node in SILLY and not self.is_open(node, anywhere=False):
            parent, hidden = SILLY.pop(node)
            with suppress(OSError):
                os.unlink(hidden, dir_fd=parent)
        return b""

    def statfs(self, node: int, data: bytes, _: int) -> bytes:
        return struct.pack("<QQQQQIIII", 2**30, 2**29, 2**29, 2**20, 2**19, 4096, 255, 4096, 0) + bytes(24)

    # ---- locks

    def getlk(self, node: int, data: bytes, _: int) -> bytes:
        _, owner, start, end, kind, _, flags, _ = struct.unpack_from("<QQQQIIII", data)
        held = None if self.unlocked() else self.server.conflict(self, node, bool(flags & 1), owner, kind, start, end)
        return struct.pack("<QQII", *((held[3], held[4], held[2], 1) if held else (start, end, 2, 0)))

    def unlocked(self) -> bool:
        """Whether locks succeed and lock nothing; raises if they fail."""
        how = self.server.behaviour.locks
        if how.isupper():
            raise OSError(getattr(errno, how), "")
        return how == "nothing"

    def setlk(self, node: int, data: bytes, unique: int, wait: bool = False) -> bytes | None:
        file, owner, start, end, kind, _, flags, _ = struct.unpack_from("<QQQQIIII", data)
        if kind != 2 and self.unlocked():
            return b""
        read_only = self.handles[file][1] & os.O_ACCMODE == os.O_RDONLY
        if kind == 1 and read_only and self.server.behaviour.write_to_lock:
            raise OSError(errno.EBADF, "")
        wanted = node, bool(flags & 1), owner, kind, start, end
        if kind != 2 and self.server.conflict(self, *wanted):
            if not wait:
                raise OSError(errno.EAGAIN, "")
            self.server.waiting.append((self, unique, *wanted))
            return None
        self.server.set_lock(self, *wanted)
        if kind != 2 and self.server.behaviour.close_to_open:
            self.revalidate(node)  # as NFS does
        return b""

    def setlkw(self, node: int, data: bytes, unique: int) -> bytes | None:
        return self.setlk(node, data, unique, wait=True)

    def interrupt(self, node: int, data: bytes, _: int) -> None:
        (unique,) = struct.unpack_from("<Q", data)
        for waiter in [one for one in self.server.waiting if one[:2] == (self, unique)]:
            self.server.waiting.remove(waiter)
            self.reply(unique, b"", errno.EINTR)

    def init(self, node: int, data: bytes, _: int) -> bytes:
        _, _, readahead, offered = struct.unpack_from("<IIII", data)
        locks = 0 if self.server.behaviour.locks == "local" else POSIX_LOCKS | FLOCK_LOCKS
        flags = offered & (ASYNC_READ | BIG_WRITES | MAX_PAGES | locks)
        return struct.pack("<IIIIHHIIHHI", 7, 38, readahead, flags, 16, 12, MEGABYTE, 1, 256, 0, 0) + bytes(28)

    def nothing(self, node: int, data: bytes, _: int) -> bytes:
        return b""


MOUNTS: list[Mount] = []
SILLY: dict[int, tuple[int, bytes]] = {}
OPERATIONS: dict[int, Callable[[Mount, int, bytes, int], bytes | None]] = {
    LOOKUP: Mount.lookup, FORGET: Mount.forget, GETATTR: Mount.getattr, SETATTR: Mount.setattr,
    READLINK: Mount.readlink, SYMLINK: Mount.symlink, MKDIR: Mount.mkdir, UNLINK: Mount.unlink, RMDIR: Mount.rmdir,
    RENAME: Mount.rename, LINK: Mount.link, OPEN: Mount.open, READ: Mount.read, WRITE: Mount.write,
    STATFS: Mount.statfs, RELEASE: Mount.release, FSYNC: Mount.fsync, FLUSH: Mount.flush, INIT: Mount.init,
    OPENDIR: Mount.opendir, READDIR: Mount.readdir, RELEASEDIR: Mount.releasedir, FSYNCDIR: Mount.nothing,
    GETLK: Mount.getlk, SETLK: Mount.setlk, SETLKW: Mount.setlkw, CREATE: Mount.create, INTERRUPT: Mount.interrupt,
    DESTROY: Mount.nothing, BATCH_FORGET: Mount.forget, RENAME2: Mount.rename2,
}  # fmt: skip


def serve(folder: str, points: list[str], behaviour: Behaviour) -> None:
    """Serves until standard input ends, and then unmounts, whatever became of its parent.

    A line on it is the number of a machine that dies, or "heal".
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.umask(0)
    server = Server(folder, behaviour)
    try:
        MOUNTS.extend(Mount(server, point) for point in points)
    except OSError as error:
        sys.exit(str(error))
    for mount in MOUNTS:
        threading.Thread(target=mount.serve, daemon=True).start()
    print("mounted", flush=True)
    for line in sys.stdin:
        if line == "heal\n":
            server.behaviour.faults.clear()
        else:
            MOUNTS[int(line)].die()
        print("done", flush=True)
    for point in points:
        ctypes.CDLL(None).umount2(os.fsencode(point), 2)  # MNT_DETACH, whoever still has files open
    os._exit(0)


@contextmanager
def mounted(disk: Path, points: list[Path], behaviour: Behaviour) -> Iterator[Callable[[str], None]]:
    """Mounts the folder ``disk`` at ``points``, one for each machine; gives what sends a line to `serve`."""
    arguments = [sys.executable, "-P", __file__, json.dumps([str(disk), list(map(str, points)), asdict(behaviour)])]
    server = Popen(arguments, stdin=PIPE, stdout=PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    write, read = server.stdin, server.stdout

    def command(line: str) -> None:
        print(line, file=write, flush=True)
        read.readline()

    try:
        if read.readline() != "mounted\n":
            raise SystemExit("FUSE cannot be mounted here: this needs Linux, root and /dev/fuse")
        yield command
    finally:
        write.close()
        server.wait()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve(given[0], given[1], Behaviour(**given[2]))
