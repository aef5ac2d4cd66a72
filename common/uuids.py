"""UUIDs in text that is not ours: typed by people, or read from a message."""

from uuid import UUID


def parse(text: str) -> UUID | None:
    """The UUID written in `text`, or None if `text` is not a UUID."""
    try:
        return UUID(text)
    except (ValueError, TypeError, AttributeError):  # a message may hold anything else instead of text
        return None
