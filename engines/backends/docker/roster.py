"""The engines' containers of one deployment, as the daemon lists them: the daemon keeps all state, in names and labels."""

from collections.abc import Sequence
from uuid import UUID

from engines.backends.base import InstanceMissing, OtherRuns, Ref
from engines.backends.docker import containers
from engines.backends.docker.containers import Found
from engines.backends.docker.daemon import Daemon


class Roster:
    """Lists and finds the containers of one deployment's engines."""

    def __init__(self, daemon: Daemon, deployment: str) -> None:
        self._daemon = daemon
        self._deployment = deployment

    def all(self) -> Sequence[Found]:
        """The containers of every engine, without containers in removal."""
        return _staying(self._list([f"{containers.DEPLOYMENT}={self._deployment}"]))

    def of_engine(self, engine_id: UUID) -> Sequence[Found]:
        """The engine's containers, without containers in removal, which cannot run any more."""
        return _staying(self.of_engine_in_removal_too(engine_id))

    def of_engine_in_removal_too(self, engine_id: UUID) -> Sequence[Found]:
        """The engine's containers, including containers in removal.

        A removal can end half-way and may be repeated. A removal on Docker 20.10 can leave a list entry until the daemon's
        restart.
        """
        return self._list(containers.engine_labels(self._deployment, engine_id))

    def of_instance(self, ref: Ref) -> Sequence[Found]:
        """The containers of one incarnation, including containers in removal."""
        listed = self._list(containers.labels(self._deployment, ref))
        return [found for found in listed if found.ref == ref]  # containers from before there were tokens lack the label

    def find(self, ref: Ref) -> Found | None:
        """The container of an instance, or None."""
        return containers.best(_staying(self.of_instance(ref)))

    def find_among(self, ref: Ref) -> tuple[Found, Sequence[Found]]:
        """The instance, and the engine's other containers, none of which runs. Raises InstanceMissing, OtherRuns."""
        found = self.of_engine(ref.engine_id)
        mine = containers.best([each for each in found if each.ref == ref])
        if mine is None:
            raise InstanceMissing(f"engine {ref.engine_id} has no incarnation {ref.mark}")
        others = [each for each in found if each.id != mine.id]
        for other in others:
            if other.runs:
                raise OtherRuns(f"incarnation {other.ref.mark} of engine {ref.engine_id} is running")
        return mine, others

    def _list(self, labels: Sequence[str]) -> Sequence[Found]:
        listed = self._daemon.ask(lambda api: api.containers(all=True, filters={"label": labels}))
        return [found for found in map(containers.parse, listed) if found]


def _staying(found: Sequence[Found]) -> Sequence[Found]:
    return [each for each in found if not each.leaving]
