"""UUIDs in text typed by people."""

from uuid import UUID


def parse(text: str) -> UUID | None:
    """The UUID written in `text`, or None if `text` is not a UUID."""
    try:
        return UUID(text)
    except ValueError:
        return None
