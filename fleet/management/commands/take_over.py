"""`take_over`: a restored or moved database goes on as this deployment, with its engines."""

from audit.actors import SYSTEM
from engines.deployment import Found
from fleet import copies
from fleet.management.act import Act


class Command(Act):
    help = (
        "Go on with a database that was restored or moved, and with its engines. Only for an original that is down for good: two"
        " deployments must not act on the same engines."
    )

    def plan(self) -> Found:
        return copies.plan_take_over()

    def question(self, found: Found) -> str:
        return f"Is the original down for good, and shall {found.here.name} go on with its {copies.count()} engines?"

    def act(self, found: Found) -> None:
        copies.take_over(found, by=SYSTEM)
