"""The command `roundhouse`: Roundhouse's API from a shell.

The environment names the API (ROUNDHOUSE_URL), holds the keys (ROUNDHOUSE_PLATFORM_KEY, ROUNDHOUSE_ADMIN_KEY), and may say on
whose behalf the commands are run (ROUNDHOUSE_ON_BEHALF_OF).

Exit codes: 0 done; 1 refused; 2 wrong usage; 3 no answer or not available even after all retries, or `--wait` is over;
130 interrupted.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from roundhouse_client import show, terminal
from roundhouse_client.client import Client
from roundhouse_client.errors import ApiError, RoundhouseError, StillRunning, Unreachable
from roundhouse_client.operator import Operator
from roundhouse_client.record import Record
from roundhouse_client.transport import RETRIES

Run = Callable[["Shell"], Any]
REFUSED, USAGE, UNAVAILABLE, INTERRUPTED = 1, 2, 3, 130


class UsageError(Exception):
    """The command cannot run as given."""


class Shell:
    """The arguments of a command, and the clients for the API."""

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self.arguments, self._stack = arguments, stack

    def __getattr__(self, name: str) -> Any:
        return getattr(self.arguments, name)

    @property
    def _options(self) -> dict[str, Any]:
        return {"retries": self.retries, "on_behalf_of": self.on_behalf_of}

    @property
    def anyone(self) -> Client:
        return self._stack.enter_context(Client(self.url, "", **self._options))

    @property
    def product(self) -> Client:
        return self._stack.enter_context(Client(self.url, _need("ROUNDHOUSE_PLATFORM_KEY"), **self._options))

    @property
    def operator(self) -> Operator:
        return self._stack.enter_context(Operator(self.url, _need("ROUNDHOUSE_ADMIN_KEY"), **self._options))


def _need(name: str) -> str:
    if value := os.environ.get(name):
        return value
    raise UsageError(f"set {name}")


# -- commands ------------------------------------------------------------------------------------------------------------

USER: dict[str, Any] = {"user": {"metavar": "USER", "help": "id of the user, as chosen by the product"}}
WAIT: dict[str, Any] = {"--wait": {"type": int, "metavar": "S", "help": "wait at most S seconds, then print the operation's id"}}
PRODUCT: dict[str, Any] = {"product_id": {"metavar": "PRODUCT", "help": "id of the product"}}
KEY: dict[str, Any] = {"key_id": {"metavar": "KEY", "help": "id of the key"}}
REASON: dict[str, Any] = {"reason": {"metavar": "REASON", "help": "reason, stored in the audit log"}}
TAIL: dict[str, Any] = {"-n": {"dest": "tail", "type": int, "metavar": "N"}, "-f": {"dest": "follow", "action": "store_true"}}
EXPIRES: dict[str, Any] = {"--expires": {"type": int, "metavar": "S", "help": "seconds until the key expires"}}
SCOPE: dict[str, Any] = {"--scope": {"action": "append", "choices": ["admit", "lifecycle", "read"]}}
FILTERS = ("action", "actor", "user_id", "engine_id", "since", "until")
OPERATOR_FILTERS = ("product_id", "request_id", "call_id", "key_id")


def _audit(shell: Shell) -> Iterable[Any]:
    filters = {name: getattr(shell, name) for name in (*FILTERS, *OPERATOR_FILTERS)}
    asks_all = shell.all or any(filters[name] for name in OPERATOR_FILTERS)
    record: Record = shell.operator if asks_all else shell.product
    if shell.follow:
        return record.follow_audit(shell.tail or 20, **filters)
    return record.list_audit(limit=shell.tail or 100, **filters).results[::-1]


def _logs(shell: Shell) -> Iterable[str]:
    tail = shell.tail or 100
    return shell.product.follow_logs(shell.user, tail) if shell.follow else shell.product.get_logs(shell.user, tail).lines


def _admit(shell: Shell) -> Any:
    return shell.product.admit(shell.user, auto_provision=shell.provision, auto_wake=shell.wake, wait_s=shell.wait)


def _explain(shell: Shell) -> Any:
    asked = {"auto_provision": shell.provision, "auto_wake": shell.wake}
    if shell.product_id:
        return shell.operator.explain(shell.product_id, shell.verb, shell.user, shell.image, **asked)
    return shell.product.explain(shell.verb, shell.user, shell.image, **asked)


ENGINES: dict[str, tuple[str, dict[str, Any], Run]] = {
    "list": ("list the engines, newest first", {"--status": {}}, lambda shell: shell.product.engines(shell.status)),
    "get": ("show an engine, with its key", USER, lambda shell: shell.product.get_engine(shell.user)),
    "provision": (
        "make a new engine, and wait until the engine is healthy",
        {**USER, "--image": {"default": ""}, **WAIT},
        lambda shell: shell.product.provision(shell.user, shell.image, wait_s=shell.wait),
    ),
    "start": ("start an engine", {**USER, **WAIT}, lambda shell: shell.product.start(shell.user, wait_s=shell.wait)),
    "stop": ("stop an engine", {**USER, **WAIT}, lambda shell: shell.product.stop(shell.user, wait_s=shell.wait)),
    "rotate-key": (
        "give an engine a new key",
        {**USER, **WAIT},
        lambda shell: shell.product.rotate_key(shell.user, wait_s=shell.wait),
    ),
    "destroy": (
        "destroy an engine and its data, for good",
        {**USER, **WAIT},
        lambda shell: shell.product.destroy(shell.user, wait_s=shell.wait),
    ),
    "admit": (
        "check whether a request may go to the user's engine now; exit 1 if not",
        {**USER, "--provision": {"action": "store_true"}, "--wake": {"action": "store_true"}, **WAIT},
        _admit,
    ),
}

COMMANDS: dict[str, tuple[str, dict[str, Any], Run]] = {
    **{name: command for name, command in ENGINES.items() if name != "list"},
    "logs": ("show the last lines of an engine's log", {**USER, **TAIL}, _logs),
    "audit": (
        "show audit rows, oldest first; of all products with the admin key, if an option says so",
        {
            **TAIL,
            **{f"--{name.replace('_', '-')}": {} for name in FILTERS},
            "--all": {"action": "store_true", "help": "rows of all products and of the fleet, for operators"},
            **{f"--{name.replace('_', '-')}": {"help": "for operators"} for name in OPERATOR_FILTERS},
        },
        _audit,
    ),
    "explain": (
        "dry-run a call: show its outcome and the deciding rules; exit 1 for a refusal",
        {
            "verb": {"metavar": "VERB", "help": "admit, provision, start, stop, rotate-key or destroy"},
            **USER,
            "--image": {},
            "--provision": {"action": "store_true", "default": None},
            "--wake": {"action": "store_true", "default": None},
            "--product": {"dest": "product_id", "metavar": "ID", "help": "id of the product, for operators"},
        },
        _explain,
    ),
    "operation": ("show the state and result of an operation", {"id": {}}, lambda shell: shell.product.get_operation(shell.id)),
    "status": ("count the engines by state", {}, lambda shell: shell.product.get_status()),
    "metrics": ("show the last hour, and totals", {}, lambda shell: shell.product.get_metrics()),
    "health": ("check whether the web process can serve", {}, lambda shell: shell.anyone.get_health()),
}

GROUPS: dict[str, dict[str, tuple[str, dict[str, Any], Run]]] = {
    "engines": ENGINES,
    "products": {
        "register": (
            "register a product, and print its first platform key",
            {"slug": {}, "name": {}, "--policy": {"type": json.loads, "metavar": "JSON"}},
            lambda shell: shell.operator.register_product(shell.slug, shell.name, shell.policy),
        ),
        "policy": (
            "replace a product's policy",
            {**PRODUCT, "policy": {"type": json.loads, "metavar": "JSON"}},
            lambda shell: shell.operator.replace_policy(shell.product_id, shell.policy),
        ),
        "override": (
            "give a rule of a product's policy a new value, for a limited time",
            {**PRODUCT, "rule": {}, "value": {"type": json.loads, "metavar": "JSON"}, "seconds": {"type": int}, **REASON},
            lambda shell: shell.operator.grant_override(shell.product_id, shell.rule, shell.value, shell.reason, shell.seconds),
        ),
        "overrides": ("list the overrides, newest first", PRODUCT, lambda shell: shell.operator.list_overrides(shell.product_id)),
        "end-override": (
            "end an override before it expires",
            {**PRODUCT, "override_id": {"metavar": "OVERRIDE", "help": "id of the override"}},
            lambda shell: shell.operator.end_override(shell.product_id, shell.override_id),
        ),
        "suspend": (
            "suspend a product: refuse calls that would make its engines serve",
            {**PRODUCT, **REASON, "--stop-engines": {"action": "store_true"}},
            lambda shell: shell.operator.suspend_product(shell.product_id, shell.reason, stop_engines=shell.stop_engines),
        ),
        "resume": (
            "end a product's suspension",
            {**PRODUCT, **REASON},
            lambda shell: shell.operator.resume_product(shell.product_id, shell.reason),
        ),
        "delete": (
            "delete a product without living engines, for good",
            PRODUCT,
            lambda shell: shell.operator.delete_product(shell.product_id),
        ),
        "env": (
            "list the names of the engines' environment variables; with JSON, replace the variables",
            {**PRODUCT, "env": {"nargs": "?", "type": json.loads, "metavar": "JSON"}},
            lambda shell: (
                shell.operator.get_engine_env(shell.product_id)
                if shell.env is None
                else shell.operator.replace_engine_env(shell.product_id, shell.env)
            ),
        ),
    },
    "keys": {
        "list": ("list a product's platform keys", PRODUCT, lambda shell: shell.operator.list_platform_keys(shell.product_id)),
        "issue": (
            "issue an additional platform key",
            {**PRODUCT, **SCOPE, **EXPIRES},
            lambda shell: shell.operator.issue_platform_key(shell.product_id, shell.scope, shell.expires),
        ),
        "rotate": (
            "issue a platform key that replaces all earlier keys",
            {**PRODUCT, "--overlap": {"type": int, "metavar": "S"}},
            lambda shell: shell.operator.rotate_platform_key(shell.product_id, overlap_s=shell.overlap),
        ),
        "revoke": (
            "revoke a platform key at once",
            {**PRODUCT, **KEY},
            lambda shell: shell.operator.revoke_platform_key(shell.product_id, shell.key_id),
        ),
    },
    "admin-keys": {
        "list": ("list the named admin keys", {}, lambda shell: shell.operator.list_admin_keys()),
        "issue": (
            "issue an additional admin key",
            {"name": {}, **EXPIRES},
            lambda shell: shell.operator.issue_admin_key(shell.name, shell.expires),
        ),
        "revoke": ("revoke an admin key at once", KEY, lambda shell: shell.operator.revoke_admin_key(shell.key_id)),
    },
}


# -- parsing -------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. The common options may stand before or after a command's name."""
    made = argparse.ArgumentParser(prog="roundhouse", description="Roundhouse's API from a shell.")
    url, behalf = os.environ.get("ROUNDHOUSE_URL", "http://127.0.0.1:8000"), os.environ.get("ROUNDHOUSE_ON_BEHALF_OF", "")
    _add_common(made, {"json": False, "url": url, "retries": RETRIES, "on_behalf_of": behalf})
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        _add(commands, name, *command)
    for name, group in GROUPS.items():
        grouped = commands.add_parser(name, help=", ".join(group)).add_subparsers(required=True, metavar="COMMAND")
        for verb, command in group.items():
            _add(grouped, verb, *command)
    return made


def _add(commands: Any, name: str, told: str, arguments: dict[str, dict[str, Any]], run: Run) -> None:
    made = commands.add_parser(name, help=told, description=told)
    _add_common(made, dict.fromkeys(("json", "url", "retries", "on_behalf_of"), argparse.SUPPRESS))
    for argument, options in arguments.items():
        made.add_argument(argument, **options)
    made.set_defaults(run=run)


def _add_common(made: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    made.add_argument("--json", action="store_true", default=defaults["json"], help="print JSON, an object per line")
    made.add_argument("--url", default=defaults["url"], help="URL of the API (default: ROUNDHOUSE_URL)")
    made.add_argument("--retries", type=int, default=defaults["retries"], metavar="N", help=f"retries (default: {RETRIES})")
    behalf = "the person or program behind the command, for the audit log (default: ROUNDHOUSE_ON_BEHALF_OF)"
    made.add_argument("--on-behalf-of", default=defaults["on_behalf_of"], metavar="NAME", help=behalf)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the locale cannot write must not end `logs -f`
    arguments = parser().parse_args(argv)
    try:
        with ExitStack() as stack:
            answer = arguments.run(Shell(arguments, stack))
            show.show(answer, as_json=arguments.json)
        is_no = getattr(answer, "admitted", True) is False or getattr(answer, "would", "") == "refuse"
        return REFUSED if is_no else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RoundhouseError, UsageError, ValueError) as error:
        return _report(error)


def _report(error: Exception) -> int:
    """Print the error on stderr; returns the exit code for the error."""
    clean = terminal.cleaner(sys.stderr)
    print(f"roundhouse: {clean(str(error))}", file=sys.stderr)
    if isinstance(error, ApiError):
        told = {
            "details": error.details and json.dumps(error.details),
            "retry after": error.retry_after_s is not None and f"{error.retry_after_s:g} s",
            "request id": error.request_id,
        }
        print("".join(f"  {name}: {clean(value)}\n" for name, value in told.items() if value), end="", file=sys.stderr)
        return UNAVAILABLE if error.status in (502, 503, 504) else REFUSED
    if isinstance(error, StillRunning):
        return UNAVAILABLE
    return UNAVAILABLE if isinstance(error, Unreachable) else USAGE


if __name__ == "__main__":
    sys.exit(main())
