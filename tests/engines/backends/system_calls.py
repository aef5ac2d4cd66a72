"""A program for the inside of a container: tries system calls that engines may not make, and prints what the kernel answers.

The tests of this folder hand its text to a container's Python. It prints a JSON object: by name of a call its error, such as
"EPERM", "" if the call was carried out, or the signal that ended the call's process. Without a filter the kernel refuses most of
these calls for their arguments, and not for missing rights; so EPERM says that the filter is what refuses.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import signal

IS_X86 = platform.machine() == "x86_64"
BAD = ctypes.c_ulong(-1).value  # no address, no descriptor, and flags that nobody knows
NAMESPACES = {
    "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip
THREAD_ALONE = 0x10000  # CLONE_THREAD without what it needs: the kernel makes no process of it
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_TIPC, AF_ALG, AF_VSOCK = 1, 2, 10, 16, 17, 30, 38, 40
OTHER_FAMILIES = (3, 4, 5, 9, 15, 21, *range(26, 38), 39, *range(41, 46))
STREAM, DGRAM, RAW, SEQPACKET, DCCP = 1, 2, 3, 5, 6

# name: (number on x86-64, number on aarch64, arguments); a number is None where the processor has no such call
REFUSED = {
    "io_uring_setup": (425, 425, 0, 0),
    "io_uring_enter": (426, 426, BAD, 1, 0, 0, 0, 0),
    "io_uring_register": (427, 427, BAD, 0, 0, 0),
    "add_key": (248, 217, 0, 0, 0, 0, 0),
    "request_key": (249, 218, 0, 0, 0, 0),
    "keyctl": (250, 219, 0, BAD - 2, 0),
    "userfaultfd": (323, 282, 0xFF),
    "perf_event_open": (298, 241, 0, 0, 0, BAD, BAD),
    "bpf": (321, 280, 5, 0, 0),
    "unshare": (272, 97, NAMESPACES["NEWUSER"] | 1),
    "setns": (308, 268, BAD, 0),
    "mount": (165, 40, 0, 0, 0, 0, 0),
    "umount2": (166, 39, 0, 0xFFFF),
    "pivot_root": (155, 41, 0, 0),
    "chroot": (161, 51, 0),
    "open_tree": (428, 428, BAD, 0, BAD),
    "move_mount": (429, 429, BAD, 0, BAD, 0, BAD),
    "fsopen": (430, 430, 0, BAD),
    "fsconfig": (431, 431, BAD, 99, 0, 0, 0),
    "fsmount": (432, 432, BAD, BAD, BAD),
    "fspick": (433, 433, BAD, 0, BAD),
    "mount_setattr": (442, 442, BAD, 0, BAD, 0, 0),
    "kexec_load": (246, 104, 0, BAD, 0, BAD),
    "kexec_file_load": (320, 294, BAD, BAD, 0, 0, BAD),
    "init_module": (175, 105, 0, 0, 0),
    "finit_module": (313, 273, BAD, 0, BAD),
    "delete_module": (176, 106, 0, 0),
    "open_by_handle_at": (304, 265, BAD, 0, 0),
    "name_to_handle_at": (303, 264, BAD, 0, 0, 0, BAD),
    "fanotify_init": (300, 262, BAD, BAD),
    "fanotify_mark": (301, 263, BAD, BAD, 0, BAD, 0),
    "kcmp": (312, 272, BAD, BAD, 99, 0, 0),
    "pidfd_getfd": (438, 438, BAD, BAD, BAD),
    "process_madvise": (440, 440, BAD, 0, 0, 0, BAD),
    "mbind": (237, 235, 1, 0, BAD, 0, 0, BAD),
    "migrate_pages": (256, 238, BAD, BAD, 0, 0),
    "move_pages": (279, 239, 0, 0, 0, 0, 0, BAD),
    "set_mempolicy": (238, 237, BAD, 0, 0),
    "personality, without random addresses": (135, 92, 0x40000),
    "personality, with reads that execute": (135, 92, 0x400000),
    "personality, of another system": (135, 92, 0x0006),
    "modify_ldt": (154, None, 0, 0, 0),
    "iopl": (172, None, 9),
    "ioperm": (173, None, BAD, BAD, 1),
    "acct": (163, 89, 0),
    "quotactl": (179, 60, BAD, BAD, 0, 0),
    "quotactl_fd": (443, 443, BAD, BAD, 0, 0),
    "swapon": (167, 224, 0, 0),
    "swapoff": (168, 225, 0),
    "reboot": (169, 142, 0, 0, 0, 0),
    "sethostname": (170, 161, 0, BAD),
    "setdomainname": (171, 162, 0, BAD),
    "settimeofday": (164, 170, 0, 0),
    "clock_settime": (227, 112, 0, 0),
    "syslog": (103, 116, 3, 0, BAD),
    "vhangup": (153, 58),
    **{f"clone, {name}": (56, 220, flag | THREAD_ALONE, 0, 0, 0, 0) for name, flag in NAMESPACES.items()},
    "socket, AF_VSOCK": (41, 198, AF_VSOCK, STREAM, 0),
    "socket, AF_VSOCK with more bits than the kernel reads": (41, 198, AF_VSOCK | 1 << 32, STREAM, 0),
    "socket, AF_ALG": (41, 198, AF_ALG, SEQPACKET, 0),
    "socket, AF_PACKET": (41, 198, AF_PACKET, RAW, 0),
    **{f"socket, family {family}": (41, 198, family, SEQPACKET, 0) for family in OTHER_FAMILIES},
    "socket, SCTP": (41, 198, AF_INET, STREAM, 132),
    "socket, SCTP without its number": (41, 198, AF_INET, SEQPACKET, 0),
    "socket, DCCP": (41, 198, AF_INET, DCCP, 33),
    "socket, MPTCP": (41, 198, AF_INET, STREAM, 262),
    "socket, SCTP over IPv6": (41, 198, AF_INET6, STREAM, 132),
    **{f"socket, netlink {protocol}": (41, 198, AF_NETLINK, RAW, protocol) for protocol in (4, 6, 9, 12, 15, 16, 21)},
    "socketpair, AF_TIPC": (53, 199, AF_TIPC, STREAM, 0, 0),
    "socketpair, AF_VSOCK": (53, 199, AF_VSOCK, STREAM, 0, 0),
}  # fmt: skip

# Answered with ENOSYS: libraries then use an older call.
UNKNOWN = {"clone3": (435, 435, 0, 0), "statmount": (457, 457, 0, 0, 0, 0), "a call of the future": (999, 999)}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(number, *arguments):
    """What the kernel answers to a system call: "" or the name of the error."""
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)) >= 0:
        return ""
    return errno.errorcode[ctypes.get_errno()]


def apart(act):
    """The answer of a call in a process of its own: the call may change or end its process."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.write(writes, act().encode())
        os._exit(0)
    os.close(writes)
    _, status = os.waitpid(child, 0)
    with open(reads) as pipe:
        return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else pipe.read()


def call_as_32_bit():
    """getpid by the system calls of 32-bit programs, which a 64-bit program can make, too."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return "" if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid() else "refused"


def tried(calls):
    """By name of a call: the answer. Calls that the processor does not have are left out."""
    here = {name: (x86 if IS_X86 else arm, *arguments) for name, (x86, arm, *arguments) in calls.items()}
    return {name: apart(lambda known=known: call(*known)) for name, known in here.items() if known[0] is not None}


def main():
    foreign = {"32-bit": apart(call_as_32_bit), "x32": apart(lambda: call(0x40000000 | 39))} if IS_X86 else {}
    print(json.dumps({"refused": tried(REFUSED), "unknown": tried(UNKNOWN), "foreign": foreign}))


if __name__ == "__main__":
    main()
