"""Engines as they must be expected: servers that answer a probe with whatever bytes a test gives them, or in their own time."""

import asyncio
import hmac
import re
import socket
import threading
from contextlib import contextmanager

BLOCK = 16_384  # bytes
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'


@contextmanager
def listening(answer, count=1, address="127.0.0.1", port=0):
    """`count` ports on which `answer(head, writer)`, a coroutine function, serves each connection; yields the ports.

    `head`: the bytes of the request until the empty line. `port`: the only port; 0: any.
    """
    sockets = [_listen(address, port) for _ in range(count)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(_serve(sockets, answer), loop).result(30)
        yield [listener.getsockname()[1] for listener in sockets]
    finally:
        asyncio.run_coroutine_threadsafe(_end(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for listener in sockets:
            listener.close()
        loop.close()


def _listen(address, port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(128)
    return listener


async def _serve(sockets, answer):
    async def once(reader, writer):
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the probe has seen enough
        finally:
            writer.close()

    for listener in sockets:
        await asyncio.start_server(once, sock=listener)


async def _end():
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def saying(*parts, pause_s=0.0):
    """An answer in these parts, `pause_s` apart, without a proof."""

    async def answer(head, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


def proving(*parts, pause_s=0.0, key_hash="0" * 64):
    """The same from an engine with this hash of its key: every part is a head, which gets the proof, or has no line end."""

    async def answer(head, writer):
        nonce = re.search(rb"\r\nX-Engine-Nonce: ([0-9a-f]{32})\r\n", head)[1]
        shown = hmac.new(key_hash.encode(), nonce, "sha256").hexdigest()
        proven = [part.replace(b"\r\n", b"\r\nX-Engine-Proof: " + shown.encode() + b"\r\n", 1) for part in parts]
        await saying(*proven, pause_s=pause_s)(head, writer)

    return answer


def flooding(begin, repeat, sent, pause_s=0.0):
    """`begin`, then `repeat` without end, `pause_s` apart; the sizes of what was sent go into the list `sent`."""

    async def answer(head, writer):
        writer.transport.set_write_buffer_limits(0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)  # what is sent is soon received
        block = repeat * (1 if pause_s else BLOCK // max(1, len(repeat)))
        writer.write(begin)
        while True:
            await writer.drain()
            sent.append(len(block))
            await asyncio.sleep(pause_s if block else 3600)
            writer.write(block)

    return answer


def body(content, status="200 OK", *headers):
    """The bytes of an answer with that body."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content
