"""The memory backend, for tests: an instance is an entry in the memory of a server process, plus a port.

`python -m engines.backends.memory SOCKET` starts the server. The server is the runtime of the instances, as dockerd is the
runtime of containers, and answers on the port of every running instance. The server keeps nothing on disk: after its restart it
has a new identity and no instances or volumes, like a host after the death of its disk.

`MemoryBackend` is the client of the server. Every verb opens a short connection, and thus all processes see the same instances.
"""

from engines.backends.memory.backend import MemoryBackend
from engines.backends.memory.behaviour import Behaviour

__all__ = ["Behaviour", "MemoryBackend"]
