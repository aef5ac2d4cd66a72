"""A program for the inside of a container: does what programs usually do, and ends with "all done".

The tests of this folder hand its text to a container's Python, to see that the filter of system calls is in nobody's way.
"""

import asyncio
import ctypes
import mmap
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


def compute(number):
    return sum(range(number))


async def run_programs():
    programs = [await asyncio.create_subprocess_exec(sys.executable, "-c", "print(1)", stdout=subprocess.PIPE) for _ in range(3)]
    assert [(await program.communicate())[0] for program in programs] == [b"1\n"] * 3
    server = await asyncio.start_server(lambda reads, writes: writes.close(), "127.0.0.1", 0)
    reads, writes = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reads.read() == b""
    writes.close()
    server.close()


def use_threads_and_processes():
    threads = [threading.Thread(target=compute, args=(1000,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with multiprocessing.Pool(2) as pool:
        assert pool.map(compute, [10, 20]) == [45, 190]
    assert subprocess.run("echo $((6 * 7)) | cat", shell=True, capture_output=True).stdout == b"42\n"


def use_files(folder):
    path = f"{folder}/notes.sqlite"
    with sqlite3.connect(path) as notes:
        notes.execute("PRAGMA journal_mode = wal")
        notes.execute("CREATE TABLE note (text)")
    Path(path).chmod(0o640)
    os.sendfile(os.memfd_create("copy"), os.open(path, os.O_RDONLY), 0, 10)
    mmap.mmap(-1, mmap.PAGESIZE).write(b"x")
    os.eventfd(1)


def use_sockets():
    assert "lo" in dict(map(reversed, socket.if_nameindex()))  # asks the kernel over netlink
    assert socket.getaddrinfo("localhost", 80)
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            socket.socket(family, kind).close()
    socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP).close()
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP).close()
    socket.socketpair()


def use_a_debugger():
    """A child is traced by its parent, as a debugger does."""
    child = os.fork()
    if not child:
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
        os.execv(sys.executable, [sys.executable, "-c", ""])
    assert os.WIFSTOPPED(os.waitpid(child, 0)[1])
    ctypes.CDLL(None).ptrace(7, child, 0, 0)  # PTRACE_CONT
    assert os.waitpid(child, 0)[1] == 0


def main():
    use_threads_and_processes()
    asyncio.run(run_programs())
    with tempfile.TemporaryDirectory() as folder:
        use_files(folder)
    use_sockets()
    use_a_debugger()
    print("all done")


if __name__ == "__main__":
    main()
