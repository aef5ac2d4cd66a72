"""Calls to the Docker daemon: one client per thread, a deadline per verb, and the contract's errors for the daemon's refusals."""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
from docker import APIClient
from docker.errors import (
    APIError,
    DockerException,
    NotFound as NotFound,  # re-exported for the callers
)

from engines.backends.base import (
    BackendError,
    BackendUnavailable,
    DiskFull,
    ImageMissing,
    InstanceMissing,
    NetworkFull,
    PortTaken,
    QuotaMissing,
    RuntimeMissing,
)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5  # between two rounds of a verb
GROWTH = 1.5
NO_ANSWER = (requests.RequestException, DockerException, OSError)

T = TypeVar("T")

# The daemon has no error codes for these cases, so its messages are matched: the messages of 20.10 (tested), and the messages of
# later versions as far as known.
SAYS: tuple[tuple[type[BackendError], str], ...] = (
    (PortTaken, "port is already allocated|address already in use|failed to bind host port"),
    (NetworkFull, "no available ipv4 addresses|exchange full|ipv4 address pool among|address pools have been fully subnetted"),
    (QuotaMissing, "no quota support|quota size requested"),
    (DiskFull, "no space left on device|disk quota exceeded"),
    (
        RuntimeMissing,
        r"unknown runtime|invalid runtime name|runtime \S+ binary not installed"
        r"|oci runtime error .*exec:? \S+: (no such file|executable file not found|permission denied)",
    ),
    (ImageMissing, "no such image|invalid reference format|repository name must be"),
    (InstanceMissing, r"no such container|marked for removal|/containers/[0-9a-f]{64}/\S*: no such file"),
    (
        BackendUnavailable,
        "cannot allocate memory|resource temporarily unavailable|context (deadline exceeded|canceled)|connection (refused|reset)"
        "|transport is closing|code = unavailable|ttrpc: closed|shutting down|i/o timeout|unable to remove filesystem"
        "|did not receive an exit event",
    ),
)


class Daemon:
    """One daemon, for any number of threads. `url`: unix://, tcp://, or ssh:// with paramiko; `timeout_s`: seconds per verb."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._version = "auto"  # of the API, once negotiated
        self._local = threading.local()

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """Limit all calls in the block to `timeout_s` together; an APIError leaves the block as an error of the contract."""
        self._local.deadline = time.monotonic() + self.timeout_s
        self._local.refusal = ""
        try:
            yield
        except APIError as refused:
            raise named(refused, name) from refused

    def ask(self, question: Callable[[APIClient], T]) -> T:
        """The daemon's answer to `question`; a repeat must be safe, because a kept connection that died causes a second call.

        Raises APIError unchanged, and BackendUnavailable when the daemon does not answer.
        """
        for is_last in (False, True):
            try:
                return question(self._client())
            except APIError as refused:
                self._local.refusal = said_by(refused)
                if is_last or "client version" not in said_by(refused):
                    raise
                self._version = "auto"  # the daemon was replaced by a different version: negotiate again
            except requests.Timeout as error:
                self._local.client = None
                raise BackendUnavailable(f"the Docker daemon at {self.url} did not answer in time") from error
            except NO_ANSWER as error:
                if is_last:
                    self._local.client = None
                    raise BackendUnavailable(f"the Docker daemon at {self.url} does not answer: {error}") from error
            self._local.client = None
        raise AssertionError

    def api_version(self) -> str:
        """The API version negotiated with the daemon. Raises BackendUnavailable."""
        return self.ask(lambda api: str(api.api_version))

    def create(self, config: Mapping[str, Any], name: str) -> None:
        """Create a container. Raises APIError, with status 409 (conflict) when the name is taken."""
        self.ask(lambda api: api.create_container_from_config(config, name))  # type: ignore[no-untyped-call]

    def rounds(self) -> Iterator[None]:
        """Yield once, then again while concurrent changes prevent success; raises BackendUnavailable at the verb's deadline.

        Probably somebody changes the engine's containers all the time, or keeps an object in use. The error quotes the daemon's
        last refusal, which names the object. The pauses grow: another worker is done in a moment, but a volume may be in use for
        as long as the verb lasts, and the daemon serves every other engine meanwhile.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            yield
            if self._left() < 2 * pause_s:
                raise BackendUnavailable(f"concurrent changes prevent success; the daemon's last refusal: {self._local.refusal}")
            time.sleep(pause_s)
            pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)

    def spent(self) -> float:
        """Seconds since the verb began."""
        return self.timeout_s - self._left()

    def _client(self) -> APIClient:
        """The thread's client, with its time-out set to the seconds left for the verb."""
        client: APIClient | None = getattr(self._local, "client", None)
        if client is None:
            client = APIClient(base_url=self.url, version=self._version, timeout=math.ceil(self._left()), use_ssh_client=True)
            self._version = client.api_version
            self._local.client = client
        client.timeout = math.ceil(self._left())
        return client

    def _left(self) -> float:
        deadline: float = self._local.deadline
        return max(0.01, deadline - time.monotonic())


def said_by(refused: APIError) -> str:
    """The daemon's error message in lower case."""
    return f"{refused.explanation or refused}".lower()


def is_conflict(refused: APIError) -> bool:
    """Whether a name is taken, or a container's state does not allow the requested change."""
    return refused.status_code == 409


def named(refused: APIError, verb: str) -> BackendError:
    """The contract's error for a refusal by the daemon; a plain BackendError if message and status are unknown."""
    said = f"{verb}: {refused.explanation or refused}"
    for error, words in SAYS:
        if re.search(words, said.lower()):
            return error(said)
    if refused.status_code in (502, 503, 504):
        return BackendUnavailable(said)
    return BackendError(said)


def is_about_network(refused: APIError) -> bool:
    """Whether the daemon misses a network; the status is 404, as for a missing container."""
    return refused.status_code == 404 and re.search(r"network \S+ not found", said_by(refused)) is not None
