"""A filter for system calls: what the other walls do not cover.

Namespaces hide the host's files, processes and network, and resource limits bound what
is counted. Left over are calls that reach the kernel past both: sockets of families
without namespaces (AF_VSOCK talks to the hypervisor), memory that no limit counts
(memfd, System V segments and queues, shared mappings without a file, of which the pages
stay when all but one is unmapped), new namespaces, keyrings, tracing and the large
interfaces where kernels most often had holes (bpf, io_uring, userfaultfd, perf).

The filter is classic BPF, written by hand because it is small: bubblewrap takes it
as bytes.
"""

import errno
import functools
import os
import struct

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64, "arm64": _AARCH64}

_NR, _ARCH, _ARGS = 0, 4, tuple(range(16, 64, 8))
"""Offsets in ``struct seccomp_data``; the low half of each argument."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000
"""Calls of the x32 ABI have this bit; they would bypass a list of numbers."""

_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME."""
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: what there is inside is a loopback device and nothing else."""

_REFUSED = {
    # tracing and reading other processes, objects by handle
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18), "syslog": (103, 116),
    # large interfaces to the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "fanotify_init": (300, 262), "vmsplice": (278, 75), "personality": (135, 92),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442),
    "setns": (308, 268), "unshare": (272, 97),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "semget": (64, 190), "mq_open": (240, 180),
    # the machine itself
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
}  # fmt: skip
"""Call → its number on x86_64 and on aarch64."""
_REFUSED_ON_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_MMAP, _SETSOCKOPT = (9, 222), (54, 208)
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
"""Bits of the flags: a mapping is shared or private, and only private ones lack the first."""
_SOL_SOCKET, _BUFFER_SIZES = 1, (7, 8)
"""SO_SNDBUF and SO_RCVBUF: what a socket may hold."""


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter for a machine, as bubblewrap's ``--seccomp`` reads it.

    A refused call fails with an error, so that a program which merely tries goes on.

    Args:
        machine: As ``uname -m`` tells it; default: this one.

    Raises:
        ValueError: There is no list of calls for it.

    Example:
        >>> len(seccomp_filter("x86_64")) % 8
        0
    """
    machine = os.uname().machine if machine is None else machine
    if machine not in _ARCHITECTURES:
        raise ValueError(
            f"the sandbox has no list of system calls for the machine '{machine}'; "
            f"it has them for {', '.join(_ARCHITECTURES)}"
        )
    return _assemble(_ARCHITECTURES[machine])


@functools.cache
def _assemble(architecture: int) -> bytes:
    column = 0 if architecture == _X86_64 else 1
    refused = [numbers[column] for numbers in _REFUSED.values()]
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if architecture == _X86_64:
        refused += _REFUSED_ON_X86.values()
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number in sorted(refused):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    # The flags of clone3 are behind a pointer, which a filter cannot follow; the C library
    # takes ENOSYS as "use clone".
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    code += [
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _ARGS[0]),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        refuse,
        allow,
    ]
    code += [
        (_EQUAL, 0, 5, _MMAP[column]),
        (_LOAD, 0, 0, _ARGS[3]),
        (_ANY_BIT, 0, 2, _MAP_ANONYMOUS),
        (_ANY_BIT, 0, 1, _MAP_SHARED),
        refuse,
        allow,
    ]
    # Without an effect and without an error, as the kernel treats a size that is too large.
    send, receive = _BUFFER_SIZES
    code += [
        (_EQUAL, 0, 7, _SETSOCKOPT[column]),
        (_LOAD, 0, 0, _ARGS[1]),
        (_EQUAL, 0, 4, _SOL_SOCKET),
        (_LOAD, 0, 0, _ARGS[2]),
        (_EQUAL, 1, 0, send),
        (_EQUAL, 0, 1, receive),
        (_RETURN, 0, 0, _ERRNO),
        allow,
    ]
    families = len(_FAMILIES)
    code += [(_EQUAL, 0, families + 2, _SOCKET[column]), (_LOAD, 0, 0, _ARGS[0])]
    code += [(_EQUAL, families - i, 0, family) for i, family in enumerate(_FAMILIES)]
    code += [(_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
