"""Unregistered engines: engines that the runtime has and the registry does not, as after a restore of the database.

`note` compares the two, `adopt` registers an engine again, and `forget` with `remove_forgotten` removes an engine with its data.
Both need a person's word. `of_user` tells a provision which data of its user there is already.
"""

from engines.unregistered.adoption import Adopted, adopt
from engines.unregistered.errors import NotUnregistered, OwnerUnknown, RemovalAsked
from engines.unregistered.notes import find, note, of_user
from engines.unregistered.removal import forget, remove_forgotten

__all__ = [
    "Adopted",
    "NotUnregistered",
    "OwnerUnknown",
    "RemovalAsked",
    "adopt",
    "find",
    "forget",
    "note",
    "of_user",
    "remove_forgotten",
]
