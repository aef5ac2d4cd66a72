"""Reads a container's last output from the daemon, within a bound: the SDK would take in all of it, however long its lines are.

The daemon keeps output in entries: a line, or ENTRY bytes of a longer line. It counts entries, too, when it is asked for the last
lines.
"""

import struct

import requests
from docker import APIClient
from docker.errors import create_api_error_from_http_exception

ENTRY = 16 * 1024  # bytes, at most
FRAME = struct.Struct(">4xL")  # before every entry of an answer: which stream (4 bytes, not needed), and the entry's bytes
FEW = 256  # entries that fit into MOST in any case, with the entry before them
MOST = (FEW + 1) * (FRAME.size + ENTRY)  # bytes read of an answer; 4 MB
SPARE = 16  # further entries, so that the oldest line is whole if it has no more than 256 kB


def read(api: APIClient, container_id: str, tail: int) -> tuple[bytes, bool]:
    """The last entries, and whether they begin in the middle of a line. Raises APIError, requests.RequestException.

    The entries are `tail` and SPARE more, or only the last FEW if all together exceed MOST.
    """
    asked = tail + SPARE + 1  # one more: its end shows whether the others begin in the middle of a line
    answer = _ask(api, container_id, asked)
    if len(answer) > MOST:
        asked = min(asked, FEW + 1)
        answer = _ask(api, container_id, asked)
    entries = _entries(answer[:MOST])
    if len(entries) < asked:
        return b"".join(entries), False
    return b"".join(entries[1:]), not bytes(entries[0]).endswith(b"\n")


def _ask(api: APIClient, container_id: str, tail: int) -> bytes:
    """At most a byte more than MOST of the daemon's answer."""
    url = f"{api.base_url}/v{api.api_version}/containers/{container_id}/logs"
    with api.get(url, params={"stdout": 1, "stderr": 1, "tail": tail}, stream=True, timeout=api.timeout) as answer:
        try:
            answer.raise_for_status()
        except requests.HTTPError as refused:
            create_api_error_from_http_exception(refused)
        return bytes(answer.raw.read(MOST + 1))


def _entries(answer: bytes) -> "list[memoryview]":
    """The entries without their frames; the last entry may be cut."""
    entries, place, whole = [], 0, memoryview(answer)
    while place + FRAME.size <= len(answer):
        (length,) = FRAME.unpack_from(answer, place)
        entries.append(whole[place + FRAME.size : place + FRAME.size + length])
        place += FRAME.size + length
    return entries
