"""What a check has found: a subject with its sentences."""

from dataclasses import dataclass
from uuid import UUID

from common.characters import marked

SHOWN = 5  # disagreements reported in words per subject


@dataclass(frozen=True)
class Disagreement:
    """A subject with the first SHOWN of its `count` sentences: an engine, a product, a `day` of rows, or else the fleet."""

    engine_id: UUID | None
    product_slug: str | None
    user_id: str | None
    count: int
    sentences: list[str]
    day: str | None = None

    def __str__(self) -> str:
        """The subject and the sentences in a single line."""
        more = f"; and {self.count - len(self.sentences)} more" if self.count > len(self.sentences) else ""
        return f"{self._subject()}: {'; '.join(self.sentences)}{more}"

    def _subject(self) -> str:
        if self.day:
            return f"the rows written on {self.day}"
        if self.engine_id is None:
            return f"product {self.product_slug}" if self.product_slug else "the fleet"
        known = f" (product {self.product_slug}, user {marked(self.user_id or '')})" if self.product_slug else ""
        return f"engine {self.engine_id}{known}"
