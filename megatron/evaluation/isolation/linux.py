"""The system calls that isolate a process, by ctypes: namespaces, mounts, capabilities and a seccomp filter.

Runs in an interpreter of its own, so it imports the standard library only. Knows nothing of tests or candidates.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct

CLONE_VM, CLONE_FILES = 0x00000100, 0x00000400
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
SYS_MOUNT_SETATTR = 442  # the same number on every machine; Linux 5.12
AT_RECURSIVE = 0x8000
LAST_CAPABILITY = 63
STACK_BYTES = 1 << 14

# What a program that computes never calls, and what has no limit or no namespace: number on x86_64, on arm64.
DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),  # the sandbox's own socket
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "shmget": (29, 194),  # from here: what is kept there counts for no limit of a process
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
    "landlock_create_ruleset": (444, 444),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
}
SOCKET = (41, 198)  # AF_UNIX only: vsock, for one, belongs to no network namespace
# no larger buffers, whose memory counts for no process; "done" is the answer
SETSOCKOPT = (54, 208)
SOL_SOCKET, SO_SNDBUF, SO_SNDBUFFORCE = 1, 7, 32
MMAP = (9, 222)  # anonymous memory that is shared counts for no limit of a process
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
CLONE = (56, 220)
# its flags lie in memory, which a filter cannot read: "not implemented", and clone is used
CLONE3 = (435, 435)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NAMESPACE_FLAGS = (
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)
EPERM, ENOSYS, AF_UNIX = 1, 38, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones. Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespace of a descriptor. Raises OSError."""
    _check(_libc.setns(descriptor, flags), "setns")


def start_idle(stack: ctypes.Array[ctypes.c_char]) -> int:
    """Start a process that waits for ever, and give its pid. It copies nothing: memory and descriptors are this one's.

    stack: of make_stack; to be kept until the process has ended. Signals that this process handles, it would handle
    there: let there be none. Raises OSError.
    """
    top = ctypes.c_void_p(ctypes.addressof(stack) + STACK_BYTES)
    flags = CLONE_VM | CLONE_FILES | signal.SIGCHLD
    pid = int(_libc.clone(ctypes.cast(_libc.pause, ctypes.c_void_p), top, flags, None))
    _check(pid, "clone")
    return pid


def make_stack() -> ctypes.Array[ctypes.c_char]:
    """Give the stack of an idle process."""
    return ctypes.create_string_buffer(STACK_BYTES)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount. Raises OSError, which names the target."""
    arguments = [text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def unmount(target: str) -> None:
    """Take a mount away; what is open of it stays open. Raises OSError."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def set_read_only(target: str) -> None:
    """Make a mount and those below it read-only, without set-user-id and devices. Raises OSError."""
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)  # same bits
    result = _libc.syscall(
        SYS_MOUNT_SETATTR, -100, target.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(32)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), f"mount_setattr {target}: Linux 5.12 or later is needed")


def pivot_root(new: str) -> None:
    """Make a mount the root and let go of the old one. Raises OSError."""
    os.chdir(new)
    number = {"x86_64": 155, "aarch64": 41}.get(platform.machine())
    if number is None:
        raise OSError(ENOSYS, f"pivot_root: unknown on {platform.machine()}")
    _check(_libc.syscall(number, b".", b"."), "pivot_root")  # the old root lies over the new one
    unmount(".")
    os.chdir("/")


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process. Raises OSError."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def drop_for_children() -> None:
    """Let nothing that this process starts gain a right by an exec. Raises OSError."""
    for number in range(LAST_CAPABILITY + 1):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # the kernel has no more
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability. Raises OSError."""
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def make_filter() -> bytes | None:
    """Give the program of the seccomp filter, or None for a machine whose numbers are not known."""
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        return None
    column = list(AUDIT_ARCH).index(machine)
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    refuse, allow = 0x00050000 | EPERM, 0x7FFF0000
    program = [
        instruction(load, 4),  # architecture
        instruction(equal, AUDIT_ARCH[machine], 1, 0),
        instruction(give, 0x80000000),  # of another one, such as 32 bits: the process dies
        instruction(load, 0),  # number
    ]
    if machine == "x86_64":  # x32's numbers begin at 2**30
        program += [instruction(0x35, 1 << 30, 0, 1), instruction(give, 0x80000000)]
    for numbers in DENIED.values():
        program += [instruction(equal, numbers[column], 0, 1), instruction(give, refuse)]
    program += [instruction(equal, CLONE3[column], 0, 1), instruction(give, 0x00050000 | ENOSYS)]
    program += [
        instruction(equal, SOCKET[column], 0, 3),
        instruction(load, 16),  # first argument
        instruction(equal, AF_UNIX, 1, 0),
        instruction(give, refuse),
        instruction(load, 0),
        instruction(equal, SETSOCKOPT[column], 0, 7),
        instruction(load, 24),  # second argument
        instruction(equal, SOL_SOCKET, 0, 4),
        instruction(load, 32),  # third argument
        instruction(equal, SO_SNDBUF, 1, 0),
        instruction(equal, SO_SNDBUFFORCE, 0, 1),
        instruction(give, 0x00050000),
        instruction(load, 0),
        instruction(equal, MMAP[column], 0, 5),
        instruction(load, 40),  # fourth argument
        instruction(bits, MAP_ANONYMOUS, 0, 2),
        instruction(bits, MAP_SHARED, 0, 1),
        instruction(give, refuse),
        instruction(load, 0),
        instruction(equal, CLONE[column], 0, 3),
        instruction(load, 16),
        instruction(bits, NAMESPACE_FLAGS, 0, 1),
        instruction(give, refuse),
        instruction(give, allow),
    ]
    return b"".join(program)


def install_filter(program: bytes) -> None:
    """Refuse what the filter refuses, for good. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    pointer = ctypes.create_string_buffer(header, len(header))
    result = _libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(pointer)), 0, 0
    )
    _check(result, "seccomp")
