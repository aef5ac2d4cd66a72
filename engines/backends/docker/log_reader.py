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
FEW = 256  # entries that fit into MOST in any case
MOST = FEW * (FRAME.size + ENTRY)  # bytes read of an answer; 4 MB


def read(api: APIClient, container_id: str, tail: int) -> bytes:
    """The last `tail` entries, or only the last FEW if all together exceed MOST. Raises APIError, requests.RequestException."""
    answer = _ask(api, container_id, tail)
    if len(answer) > MOST:
        answer = _ask(api, container_id, min(tail, FEW))
    return b"".join(_entries(answer[:MOST]))


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
