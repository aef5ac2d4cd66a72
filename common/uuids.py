"""UUIDs in text that somebody has typed."""

from uuid import UUID


def parse(text: str) -> UUID | None:
    """The UUID that the text is, or None."""
    try:
        return UUID(text)
    except ValueError:
        return None
