"""Refusals to adopt or to remove an unregistered engine, in words for staff."""

from engines.errors import EngineError


class NotUnregistered(EngineError):
    """The engine is registered, or the runtime does not have it."""


class RemovalAsked(EngineError):
    """Somebody has asked for the engine's removal, which cannot be taken back."""


class OwnerUnknown(EngineError):
    """Whose engine it is: not known, not as the labels say, or of a product that does not exist."""
