"""`separate_copy`: the copy of a database becomes a deployment of its own, without the original's engines."""

from audit.actors import SYSTEM
from engines.deployment import Found
from fleet import copies
from fleet.management.act import Act


class Command(Act):
    help = (
        "Make the copy of a database a deployment of its own: in the copy, the engines of the original become tombstones. Nothing"
        " happens to the original. Set another ORCH_DEPLOYMENT first. Safe to kill and to run again."
    )

    def plan(self) -> Found:
        return copies.plan_separation()

    def question(self, found: Found) -> str:
        return f"Is this a copy, and shall {found.here.name} begin without the {copies.count()} engines in it?"

    def act(self, found: Found) -> None:
        done = copies.separate(found, by=SYSTEM, report=lambda number: self.stdout.write(f"{number} engines so far"))
        self.stdout.write(f"{done} engines of the original are tombstones in this copy.")
