"""Asking the Docker daemon: one client per thread, a deadline for each verb, and our names for its refusals."""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException
from docker.errors import NotFound as NotFound  # for the callers

from engines.backends.base import (
    BackendError,
    BackendUnavailable,
    DiskFull,
    ImageMissing,
    InstanceMissing,
    NetworkFull,
    PortTaken,
)

POLL_S = 0.02
NO_ANSWER = (requests.RequestException, DockerException, OSError)

T = TypeVar("T")

# The daemon has no codes for these, so its words are all there is: those of 20.10 (tried), and of later versions as far as known.
SAYS: tuple[tuple[type[BackendError], str], ...] = (
    (PortTaken, "port is already allocated|address already in use|failed to bind host port"),
    (NetworkFull, "no available ipv4 addresses|exchange full|ipv4 address pool among|address pools have been fully subnetted"),
    (DiskFull, "no space left on device|disk quota exceeded"),
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
    """One daemon, for any number of threads. `url`: unix://, tcp://, ssh:// with paramiko; `timeout_s`: seconds for one verb."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._version = "auto"  # the API's, once agreed upon
        self._local = threading.local()

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """Everything asked within has to be answered within `timeout_s`; refusals come out as the contract's errors."""
        self._local.deadline = time.monotonic() + self.timeout_s
        self._local.refusal = ""
        try:
            yield
        except APIError as refused:
            raise named(refused, name) from refused

    def ask(self, question: Callable[[APIClient], T]) -> T:
        """The daemon's answer to `question`, which has to be safe to ask twice: a kept connection may have died meanwhile.

        Raises APIError as it is, and BackendUnavailable.
        """
        for is_last in (False, True):
            try:
                return question(self._client())
            except APIError as refused:
                self._local.refusal = said_by(refused)
                if is_last or "client version" not in said_by(refused):  # the daemon has been exchanged for another version
                    raise
                self._version = "auto"
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
        """Of the API, as agreed upon with the daemon. Raises BackendUnavailable."""
        return self.ask(lambda api: str(api.api_version))

    def create(self, config: Mapping[str, Any], name: str) -> None:
        """Make a container. Raises APIError, a conflict when the name is taken."""
        self.ask(lambda api: api.create_container_from_config(config, name))  # type: ignore[no-untyped-call]

    def rounds(self) -> Iterator[None]:
        """Once, and again until the verb's deadline, for what others get in the way of. Raises BackendUnavailable then.

        That is somebody who changes the engine's containers all the time, or holds on to something: the daemon says to what.
        """
        while True:
            yield
            if self._left() < 2 * POLL_S:
                raise BackendUnavailable(f"others keep it from being done; the daemon's last refusal: {self._local.refusal}")
            time.sleep(POLL_S)

    def spent(self) -> float:
        """Seconds since the verb began."""
        return self.timeout_s - self._left()

    def _client(self) -> APIClient:
        """This thread's client, its time-out set to what is left for the verb."""
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
    """What the daemon said, in lower case."""
    return f"{refused.explanation or refused}".lower()


def is_conflict(refused: APIError) -> bool:
    """A name is taken, or a container is in a state that does not allow what was asked."""
    return refused.status_code == 409


def named(refused: APIError, verb: str) -> BackendError:
    """The contract's error for a refusal of the daemon."""
    said = f"{verb}: {refused.explanation or refused}"
    for error, words in SAYS:
        if re.search(words, said.lower()):
            return error(said)
    if refused.status_code in (502, 503, 504):
        return BackendUnavailable(said)
    return BackendError(said)
