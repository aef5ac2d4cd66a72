"""The load: keep-alive connections with one request under way per connection, on an event loop in a process of its own.

python -m bench.peers.load URL SECONDS CONNECTIONS USERS < the platform key       prints the result as a JSON object
"""

import asyncio
import json
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import uvloop


class Client(asyncio.Protocol):
    """A connection: sends the next request when the answer to the previous request is complete."""

    def __init__(self, run: "Run", first: int) -> None:
        self.run, self.next, self.buffer, self.began, self.is_waiting = run, first, b"", 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self.run.is_over:
            return
        if self.is_waiting:
            self.run.statuses["connection lost"] += 1
        self.run.reconnect(self)

    def _send(self) -> None:
        self.began, self.is_waiting = time.perf_counter(), True
        self.transport.write(self.run.requests[self.next % len(self.run.requests)])  # type: ignore[attr-defined]
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return
        self.buffer, self.is_waiting = b"", False
        if not self.run.is_over:
            self.run.seconds.append(time.perf_counter() - self.began)
            status = head[9:12].decode()
            self.run.statuses[status if status != "200" or b'"admitted":' in body else "no admit"] += 1
            if b"\r\nconnection: close" in head.lower():  # the server closes its connections
                self.transport.close()
            else:
                self._send()


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


class Run:
    """The requests, one per user, and the results: seconds of every request, and the number of answers per status."""

    def __init__(self, host: str, key: str, users: int) -> None:
        self.address = host.split(":")
        self.tasks: set[asyncio.Task[object]] = set()
        self.requests = [
            f"POST /engines/user-{n}/admit HTTP/1.1\r\nHost: {host}\r\nX-Platform-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            for n in range(users)
        ]
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.is_over = False

    def reconnect(self, client: Client) -> None:
        """Open a new connection for the client."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda: client, self.address[0], int(self.address[1])))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def main(url: str, seconds: float, connections: int, users: int) -> None:
    """Load the server for `seconds` and print the result."""
    parts = urlsplit(url)
    run, loop = Run(parts.netloc, sys.stdin.read().strip(), users), asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda n=n: Client(run, n * users // connections), parts.hostname, parts.port)  # type: ignore[misc]
        for n in range(connections)
    ]
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    run.is_over, took = True, time.perf_counter() - began
    for transport, _ in opened:
        transport.close()
    json.dump({"took_s": took, "cpu_s": time.process_time(), "statuses": run.statuses, "seconds": run.seconds}, sys.stdout)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
