"""`reconcile`: what the runtime has and the registry does not, and the reverse; and a person's word on each."""

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from audit import actors
from audit.actors import Actor
from common import uuids, wording
from common.characters import marked
from engines import deployment, reconcile, unregistered
from engines.backends.base import BackendError
from engines.errors import EngineError
from engines.models import Engine, UnregisteredEngine
from fleet.management.act import ask
from policy.errors import PolicyError

ALL = "all"


class Command(BaseCommand):
    help = (
        "Compare the runtime with the registry, as after a restore of the database. Removes and stops what a sweep would."
        " Lists engines that the registry does not have, and engines that have no volume. --adopt registers an engine again, with"
        " its data; --forget removes an engine with its data."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="change nothing, only list")
        adopt = "register this engine again; `all`: every engine whose product and user are known. May be given several times"
        parser.add_argument("--adopt", metavar="ENGINE_ID|all", action="append", default=[], help=adopt)
        parser.add_argument("--product", default="", help="slug, for an engine whose product the runtime does not know")
        parser.add_argument("--user", default="", help="user id, for an engine whose user the runtime does not know")
        forget = "remove this engine with its data, for good. May be given several times"
        parser.add_argument("--forget", metavar="ENGINE_ID", action="append", default=[], help=forget)
        parser.add_argument("--noinput", "--no-input", action="store_true", help="ask nothing before --forget: the answer is yes")
        parser.add_argument("--reason", default="", help="kept in the audit log")
        parser.add_argument("--by", metavar="USER", default="", help="the member of staff at this terminal, for the audit log")

    def handle(self, *args: Any, **options: Any) -> None:
        _check(options)
        by = _actor(options["by"])
        named, unwanted = _engine_ids(options["adopt"], but=ALL), _engine_ids(options["forget"])
        try:
            deployment.check()
            if unwanted and not options["noinput"]:
                ask(f"Shall the engines ({len(unwanted)}) be removed with all their data, for good?")
            refusals = self._reconcile(named, unwanted, options, by)
        except deployment.NotOurs as refused:
            raise CommandError(str(refused)) from refused
        except BackendError as error:
            raise CommandError(
                f"The runtime does not answer as it should: {wording.line(str(error))} Try again later."
            ) from error
        if refusals:
            raise CommandError(f"Refused for engines, see above: {refusals}.")

    def _reconcile(self, named: Sequence[UUID], unwanted: Sequence[UUID], options: dict[str, Any], by: Actor) -> int:
        """Correct, adopt and remove as asked, and list what is left. Returns how many engines were refused."""
        if not options["dry_run"]:
            self._agree()
        chosen = _all_known() if options["adopt"] == [ALL] else named
        done = [*(self._adopt(each, options, by) for each in chosen), *(self._forget(each, options, by) for each in unwanted)]
        if unwanted:
            self.stdout.write(f"Removed with their data: {unregistered.remove_forgotten()}.")
        self._tell(dry_run=options["dry_run"])
        return done.count(False)

    def _agree(self) -> None:
        if corrected := reconcile.agree():
            self.stdout.write(f"Corrected: {corrected}. The audit log names each.")

    def _adopt(self, engine_id: UUID, options: dict[str, Any], by: Actor) -> bool:
        """Adopt one engine. A refusal is told, returns False, and does not keep the other engines from being adopted."""
        given = {"product_slug": options["product"], "user_id": options["user"]}
        try:
            adopted = unregistered.adopt(engine_id, by=by, reason=options["reason"], **given)
        except (EngineError, PolicyError) as refusal:
            self.stderr.write(f"{engine_id}: not adopted. {wording.line(str(refusal))}")
            return False
        follows = "stopped" if adopted.start is None else "its start is under way"
        refused = f", and not started: {wording.line(str(adopted.refusal))}" if adopted.refusal else ""
        self.stdout.write(f"{engine_id}: adopted for user {marked(adopted.engine.user_id)}, {follows}{refused}")
        return True

    def _forget(self, engine_id: UUID, options: dict[str, Any], by: Actor) -> bool:
        """Ask for the removal of one engine; False for a refusal, which is told."""
        try:
            unregistered.forget(engine_id, by=by, reason=options["reason"])
        except EngineError as refusal:
            self.stderr.write(f"{engine_id}: not removed. {wording.line(str(refusal))}")
            return False
        return True

    def _tell(self, *, dry_run: bool) -> None:
        found = reconcile.compare()
        for line in _lines(found):
            self.stdout.write(line)
        if found.faulty and dry_run:
            self.stdout.write(f"Engines with an instance or a volume that this command would remove or stop: {len(found.faulty)}")
        if not (found.unregistered or found.without_volume or found.faulty):
            self.stdout.write("Runtime and registry have the same engines.")


def _lines(found: reconcile.Differences) -> Iterator[str]:
    if found.unregistered:
        yield f"In the runtime, and not in the registry: {len(found.unregistered)} (--adopt or --forget)"
        yield from map(_unregistered, found.unregistered)
    if found.without_volume:
        yield f"In the registry, and without a volume: {len(found.without_volume)} (destroy them, or start them empty)"
        yield from map(_registered, found.without_volume)


def _unregistered(engine: UnregisteredEngine) -> str:
    data = "with its data" if engine.has_volume else "without data"
    runs = "runs" if engine.runs else "does not run"
    owner = f"product {engine.product_slug or 'unknown'}, user {marked(engine.user_id) or 'unknown'}"
    return f"  {engine.pk}  {owner}: {runs}, {data}"


def _registered(engine: Engine) -> str:
    return f"  {engine.pk}  product {engine.product.slug}, user {marked(engine.user_id)}: {engine.status}"


def _check(options: dict[str, Any]) -> None:
    """Raise CommandError for options that do not go together."""
    if options["dry_run"] and (options["adopt"] or options["forget"]):
        raise CommandError("--dry-run changes nothing: leave out --adopt and --forget.")
    if (options["product"] or options["user"]) and (len(options["adopt"]) != 1 or options["adopt"] == [ALL]):
        raise CommandError("--product and --user are for a single engine: name it with --adopt.")
    if ALL in options["adopt"] and len(options["adopt"]) > 1:
        raise CommandError("--adopt takes `all`, or ids.")


def _all_known() -> list[UUID]:
    """The ids of the unregistered engines whose product and user are known."""
    return [each.pk for each in reconcile.compare().unregistered if each.product_slug and each.user_id]


def _engine_ids(texts: Sequence[str], but: str = "") -> list[UUID]:
    """The ids of engines, without the word `but`. Raises CommandError before anything is changed."""
    return [_engine_id(text) for text in texts if text != but]


def _engine_id(text: str) -> UUID:
    if (found := uuids.parse(text)) is None:
        raise CommandError(f"{wording.line(text)} is not the id of an engine; ids are in the list of --dry-run.")
    return found


def _actor(username: str) -> Actor:
    if not username:
        return actors.ADMIN
    if not User.objects.filter(username=username, is_active=True, is_staff=True).exists():
        raise CommandError(f"No member of staff has the name {wording.line(username)}.")
    return actors.staff(username)
