"""seccomp: system calls that this process and its children may not make, as a program for the
kernel's packet filter. https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping

from synthkd.core.errors import InputError, quoted
from synthkd.proof.landlock import libc

SET_SECCOMP, FILTER = 22, 2
GET_SECCOMP, GET_NO_NEW_PRIVILEGES = 21, 39
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions: load a word, jump, return
NUMBER, ARCHITECTURE = 0, 4  # where they stand in what the filter is given
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # the error number goes into the last
OTHER_ABI = 0x40000000  # of x86-64's calls with 32-bit pointers

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as the kernel audits them
# name -> numbers on these machines; newer calls have one number on all
CALLS: Mapping[str, tuple[int, int]] = {
    "socket": (41, 198),  # no network, no socket of another program
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272),  # nothing of another process
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),  # files without a path
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "msgrcv": (70, 188),
    "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192),
    "mq_open": (240, 180),  # memory, messages and semaphores that others left
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "swapon": (167, 224),
    "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
}  # fmt: skip
# attributes of files, which need no open: programs that copy files take "not supported" well
ATTRIBUTES: Mapping[str, tuple[int, int]] = {
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13), "getxattrat": (464, 464),
    "listxattrat": (465, 465),
}  # fmt: skip


def machine() -> str:
    """The architecture, where the calls are known here; else InputError."""
    found = platform.machine()
    if found not in MACHINES:
        raise InputError(
            f"--sealed: the system calls of {quoted(found)} are not known "
            f"(known: {', '.join(MACHINES)}): run without --sealed"
        )
    return found


def refused(name: str) -> dict[int, int]:
    """The calls that are refused on a machine: their numbers, and the error that each returns."""
    column = list(MACHINES).index(name)
    found = {numbers[column]: errno.EPERM for numbers in CALLS.values()}
    return found | {numbers[column]: errno.EOPNOTSUPP for numbers in ATTRIBUTES.values()}


def program(name: str) -> bytes:
    """The filter of a machine: another architecture's calls kill the process, those of `refused`
    fail, all others pass. Eight bytes an instruction.

    >>> len(program("x86_64")) % 8, len(program("aarch64")) % 8
    (0, 0)
    """
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, MACHINES[name]), (RETURN, 0, 0, KILL)]
    steps.append((LOAD, 0, 0, NUMBER))
    if name == "x86_64":
        steps += [(AT_LEAST, 0, 1, OTHER_ABI), (RETURN, 0, 0, KILL)]
    for number, error in sorted(refused(name).items()):
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | error)]
    steps.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def enforce(filter_: bytes) -> None:
    """Gives the filter to the kernel, for this thread, those it starts, and their children.
    `landlock.Rules.enforce` comes first: it forbids new privileges, which is asked for here."""
    held = ctypes.create_string_buffer(filter_, len(filter_))
    given = struct.pack("@HP", len(filter_) // 8, ctypes.addressof(held))
    if libc().prctl(SET_SECCOMP, FILTER, ctypes.create_string_buffer(given, len(given)), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def is_enforced() -> bool:
    """Whether the kernel says that a filter and the ban on new privileges hold here."""
    call = libc().prctl
    filtered, kept = call(GET_SECCOMP, 0, 0, 0, 0), call(GET_NO_NEW_PRIVILEGES, 0, 0, 0, 0)
    return bool(filtered == FILTER and kept == 1)
