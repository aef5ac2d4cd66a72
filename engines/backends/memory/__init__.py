"""Instances that are nothing but an entry in the memory of one server process, and the port on which it answers for them.

`python -m engines.backends.memory SOCKET` is that server: the runtime, as dockerd is of containers. It keeps nothing on disk: a
server that was started again has another identity and no instance or volume any more, like a host whose disk died.
`MemoryBackend` is its client: each verb is one short connection, so every process sees the same instances.
"""

from engines.backends.memory.backend import MemoryBackend
from engines.backends.memory.behaviour import Behaviour

__all__ = ["Behaviour", "MemoryBackend"]
