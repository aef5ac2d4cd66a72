"""The catalogue of audit actions: every action of `audit_log` with its meaning, its trigger and the keys of its metadata.

`trail.record` refuses metadata outside the catalogue. docs/audit-actions.md is generated from the catalogue.
"""

from collections.abc import Mapping
from types import UnionType

from audit.actions import About, Action, Retention, Takes
from audit.entries import Entry

_CAUSE: Mapping[str, type | UnionType] = {"cause": str, "reason": str}
_BOOT: Mapping[str, type | UnionType] = {
    "attempt": int,
    "image": str,
    "digest": str,
    "port": int,
    "incarnation": int,
    "remade": str,  # why the instance was made anew: `refused`, `boot_timeout` or `differs`
    "proven": bool,
    "volume": str,  # `missing`: the engine had run before, and its volume was gone; it begins without its data
}
_ERROR: Mapping[str, type | UnionType] = {"error": str, "attempt": int, "remade": str}
_REFUSAL: Mapping[str, type | UnionType] = {
    "rule": str,
    "limit": int | str,
    "value": int | str,
    "count": int,
    "since": str,
    "users": dict,
    "more": int,
}
_MORE = (
    "; a row with `count` sums up `count` further refusals in the minute after `since`: `users` counts the refusals of up to 20"
    " users by user id, `more` the refusals of all other users; the other values are the last refusal's"
)
_BESIDE = "; `unregistered` has the ids of engines of the user that only the runtime has: staff can bring their data back"
_POLICY: Mapping[str, type | UnionType] = {
    "max_engines": int,
    "rate_limit_rpm": int,
    "images": list,
    "engine_image": str,
    "memory_mb": int,
    "cpus": float,
    "pids": int,
    "disk_mb": int,
    "runtime": str,
    "egress": str | list,
}
_DEPLOYMENT: Mapping[str, type | UnionType] = {"before": dict, "after": dict}  # `name`, `system` and `database`
_DISK: Mapping[str, type | UnionType] = {"used_mb": int, "limit_mb": int}
_SIGNED: Mapping[str, type | UnionType] = {"admin_key": str}  # the name of the admin key used, if the key has a name
_OVERRIDE: Mapping[str, type | UnionType] = {"override_id": str, "rule": str, "expires_at": str}
_KEY: Mapping[str, type | UnionType] = {"key_id": str, "prefix": str, **_SIGNED}
_NEW_KEY: Mapping[str, type | UnionType] = {"scopes": list, "expires_at": str}

# The keys that products see, by group. A key that joins a group above stays hidden until it is named here. Only the rules of a
# policy are shown by themselves, because they are the product's own.
_SEEN_BOOT = ("attempt", "image", "digest", "port", "incarnation", "remade", "proven", "volume")
_SEEN_ERROR = ("error", "attempt", "remade")  # `error` is a code
_SEEN_REFUSAL = ("rule", "limit", "value", "count", "since", "users", "more")
_SEEN_FULL = ("verb", "rule", "count", "since", "users", "more")  # not how full the host is over all products
_SEEN_OVERRIDE = ("override_id", "rule", "expires_at")
_SEEN_KEY = ("key_id", "prefix", "scopes", "expires_at")

CATALOGUE: Mapping[Action, Entry] = {
    Action.PROVISION_REQUESTED: Entry(
        "new engine promised: the registry has the engine, in state `provisioning`; no instance exists yet",
        "provision, or admit with `auto_provision`",
        {"image": str, "port": int, "auto": bool, **_CAUSE},
        shown=("image", "port", "auto", "cause"),
    ),
    Action.PROVISION: Entry(
        f"new engine created, healthy and `running`{_BESIDE}",
        "the worker, at the end of a provision",
        {**_BOOT, "unregistered": list},
        shown=(*_SEEN_BOOT, "unregistered"),
        takes=Takes.ATTEMPT,
    ),
    Action.PROVISION_FAILED: Entry(
        f"a provision failed for good; the engine is `failed`{_BESIDE}",
        "the worker",
        {**_ERROR, "unregistered": list},
        shown=(*_SEEN_ERROR, "unregistered"),
        takes=Takes.ATTEMPT,
    ),
    Action.PROVISION_DENIED: Entry(f"refused by policy{_MORE}", "provision", _REFUSAL, shown=_SEEN_REFUSAL, about=About.CALL),
    Action.START: Entry(
        "engine started", "the endpoint, or staff", {**_BOOT, **_CAUSE}, shown=(*_SEEN_BOOT, "cause"), takes=Takes.ATTEMPT
    ),
    Action.START_FAILED: Entry(
        "a start failed for good; the engine is `failed`",
        "the worker",
        {**_ERROR, **_CAUSE},
        shown=(*_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.START_DENIED: Entry(
        "refused by policy because the product is suspended, or (rule `disk_mb`) because the engine's volume takes more than it"
        f" may; `verb` names the refused request{_MORE}",
        "start, wake, and restart",
        {"verb": str, **_REFUSAL},
        shown=("verb", *_SEEN_REFUSAL),
        about=About.CALL,
    ),
    Action.STOP: Entry(
        "engine stopped", "the endpoint, or staff", {"attempt": int, **_CAUSE}, shown=("attempt", "cause"), takes=Takes.ATTEMPT
    ),
    Action.STOP_FAILED: Entry(
        "a stop failed for good; the engine is `failed`",
        "the worker",
        {**_ERROR, **_CAUSE},
        shown=(*_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.SLEEP: Entry(
        "idle engine stopped, to free its memory",
        "staff",
        {"attempt": int, **_CAUSE},
        shown=("attempt", "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.SLEEP_FAILED: Entry(
        "a sleep failed for good; the engine is `failed`",
        "the worker",
        {**_ERROR, **_CAUSE},
        shown=(*_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.WAKE: Entry(
        "sleeping engine woken",
        "admit with `auto_wake`, or staff",
        {**_BOOT, **_CAUSE},
        shown=(*_SEEN_BOOT, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.WAKE_FAILED: Entry(
        "a wake failed for good; the engine is `failed`",
        "the worker",
        {**_ERROR, **_CAUSE},
        shown=(*_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.RESTART: Entry(
        "engine restarted; `cause` is `requested`, `host_restarted` after a restart of the engine's host, or `reconciled` for an"
        " engine that should run and did not although its host was not restarted",
        "staff, or the start of the fleet",
        {**_BOOT, **_CAUSE},
        shown=(*_SEEN_BOOT, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.RESTART_FAILED: Entry(
        "a restart failed for good; the engine is `failed`; unless somebody asked for the restart, automatic restarts follow",
        "the worker",
        {"restart_in_s": float, **_ERROR, **_CAUSE},
        shown=("restart_in_s", *_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.ROTATE_KEY: Entry(
        "engine key rotated: a new incarnation holds the new key",
        "the endpoint, or staff",
        {**_BOOT, **_CAUSE},
        shown=(*_SEEN_BOOT, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.ROTATE_KEY_FAILED: Entry(
        "the incarnation with the new key did not become healthy; the old key stays valid",
        "the worker",
        {**_ERROR, **_CAUSE},
        shown=(*_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.DESTROY_REQUESTED: Entry("the engine enters `destroying`", "DELETE, or staff", _CAUSE, shown=("cause",)),
    Action.DESTROY: Entry(
        "engine torn down: instance, volume and key are gone",
        "the worker",
        {"attempt": int, **_CAUSE},
        shown=("attempt", "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.DESTROY_FAILED: Entry(
        "a tear-down failed for good; request the destroy again",
        "the worker",
        {**_ERROR, **_CAUSE},
        shown=(*_SEEN_ERROR, "cause"),
        takes=Takes.ATTEMPT,
    ),
    Action.OPERATION_SUPERSEDED: Entry(
        "an open operation was ended before its completion; `superseded_by` names the newer request",
        "a destroy, or an admit that cancels a sleep",
        {"kind": str, "superseded_by": str},
        shown=("kind", "superseded_by"),
    ),
    Action.ADMIT_DENIED: Entry(f"refused by policy{_MORE}", "admit", _REFUSAL, shown=_SEEN_REFUSAL, about=About.CALL),
    Action.CAPACITY_EXHAUSTED: Entry(
        f"refused because the host has no room; `verb` names the refused request{_MORE}",
        "provision, start, wake, restart, and admit with its flags",
        {"verb": str, **_REFUSAL},
        shown=_SEEN_FULL,
        about=About.CALL,
    ),
    Action.HEALTH_CHECK: Entry(
        "probe result, sampled: the first result, every changed result, and otherwise one per `ORCH_HEALTH_ROW_INTERVAL_S`",
        "the health loop",
        {"healthy": bool, "result": str, "failures": int, "proven": bool},
        shown=("healthy", "result", "failures", "proven"),
        retention=Retention.PROBE,
    ),
    Action.HEALTH_FAILED: Entry(
        "engine marked `failed`; `cause` is `probes` (consecutive failed probes), or what the runtime's list says of the engine's"
        " instance: `instance_ended`, `instance_missing`, or `instance_elsewhere` (the instance runs without the engine's port)",
        "the health loop, and the reconcile loop",
        {"cause": str, "result": str, "failures": int, "restart_in_s": float},
        shown=("cause", "result", "failures", "restart_in_s"),
    ),
    Action.AUTO_RESTART_START: Entry("automatic restart attempted", "the health loop", {"restart": int}, shown=("restart",)),
    Action.AUTO_RESTART_SUCCESS: Entry(
        "automatic restart worked", "the worker", {"restart": int, **_BOOT}, shown=("restart", *_SEEN_BOOT), takes=Takes.ATTEMPT
    ),
    Action.AUTO_RESTART_FAILED: Entry(
        "automatic restart did not work",
        "the worker",
        {"restart": int, "restart_in_s": float, **_ERROR},
        shown=("restart", "restart_in_s", *_SEEN_ERROR),
        takes=Takes.ATTEMPT,
    ),
    Action.AUTO_RESTART_GAVE_UP: Entry(
        "automatic restarts given up; the engine stays `failed` until someone acts",
        "the worker",
        {"restarts": int},
        shown=("restarts",),
    ),
    Action.DISK_EXCEEDED: Entry(
        "an engine's volume takes more than it may: `used_mb` of `limit_mb`; written once, until `disk_reduced`",
        "the measuring of volumes",
        _DISK,
        shown=_DISK,
    ),
    Action.DISK_REDUCED: Entry(
        "an engine's volume is within its limit again, after `disk_exceeded`: data was removed, or the limit was raised",
        "the measuring of volumes",
        _DISK,
        shown=_DISK,
    ),
    Action.ORPHAN_REMOVED: Entry(
        "an instance without an engine was destroyed; `reason` is `engine_destroyed`, `old_incarnation`, or `name_taken` (a"
        " foreign container, `container`, had the name of the engine's container)",
        "the reconcile loop; for `name_taken` the worker",
        {"incarnation": int, "reason": str, "container": str},
        shown=("incarnation", "reason"),
    ),
    Action.ENGINE_ADOPTED: Entry(
        "an engine that the runtime had and the registry had not, as after a restore, is registered again: `stopped`, with its"
        " data and a new key; `runs`: an instance ran, and a start follows",
        "staff",
        {"image": str, "port": int, "incarnation": int, "runs": bool, "reason": str},
        shown=("image", "port", "incarnation", "runs"),
    ),
    Action.ENGINE_FORGOTTEN: Entry(
        "an engine that only the runtime had was removed with its data; product and user are by the runtime's labels, or empty",
        "staff, and the worker that removed it",
        {"volume": bool, "runs": bool, "reason": str},
        shown=("volume", "runs"),
        about=About.UNREGISTERED,
    ),
    Action.ENGINE_DISOWNED: Entry(
        "in the copy of a database, an engine of the original has become a tombstone; its instance and volume are not touched",
        "`manage.py separate_copy`, for each engine",
    ),
    Action.KEY_REVEAL: Entry("an engine's key was shown to staff", "staff"),
    Action.POLICY_REGISTER: Entry(
        "product registered", "the endpoint, or staff", {**_POLICY, **_SIGNED}, shown=_POLICY, about=About.PRODUCT
    ),
    Action.PRODUCT_SUSPEND: Entry(
        "product suspended: its users are not admitted, its engines neither created nor started; with `stop_engines`, running"
        " engines are stopped",
        "the endpoint, or staff",
        {"reason": str, "stop_engines": bool, **_SIGNED},
        shown=("stop_engines",),
        about=About.PRODUCT,
    ),
    Action.PRODUCT_RESUME: Entry(
        "a product's suspension ended", "the endpoint, or staff", {"reason": str, **_SIGNED}, about=About.PRODUCT
    ),
    Action.PRODUCT_DELETE: Entry(
        "product deleted, with its keys and engine environments", "the endpoint, or staff", _SIGNED, about=About.PRODUCT
    ),
    Action.POLICY_UPDATE: Entry(
        "a product's policy replaced; the metadata holds the new policy",
        "the endpoint, or staff",
        {**_POLICY, **_SIGNED},
        shown=_POLICY,
        about=About.PRODUCT,
    ),
    Action.POLICY_OVERRIDE_GRANT: Entry(
        "override granted: until `expires_at`, a rule of the product's policy has the value `value`",
        "the endpoint, or staff",
        {**_OVERRIDE, "value": int | float | str | list, "reason": str, **_SIGNED},
        shown=(*_SEEN_OVERRIDE, "value"),
        about=About.PRODUCT,
    ),
    Action.POLICY_OVERRIDE_END: Entry(
        "override ended: the rule has the policy's value again; `cause` is `expired` (the row follows within a minute), "
        "`revoked`, `replaced` (by a new override) or `product_deleted`",
        "a periodic job, the endpoints, or staff",
        {**_OVERRIDE, "cause": str, **_SIGNED},
        shown=(*_SEEN_OVERRIDE, "cause"),
        about=About.PRODUCT,
    ),
    Action.PLATFORM_KEY_ISSUE: Entry(
        "platform key issued", "registration, the endpoint, or staff", {**_KEY, **_NEW_KEY}, shown=_SEEN_KEY, about=About.PRODUCT
    ),
    Action.PLATFORM_KEY_ROTATE: Entry(
        "platform key issued in place of the `replaced` keys, which expire within `overlap_s` seconds",
        "the endpoint, or staff",
        {**_KEY, **_NEW_KEY, "replaced": list, "overlap_s": int},
        shown=(*_SEEN_KEY, "replaced", "overlap_s"),
        about=About.PRODUCT,
    ),
    Action.PLATFORM_KEY_REVOKE: Entry(
        "platform key revoked", "the endpoint, or staff", _KEY, shown=("key_id", "prefix"), about=About.PRODUCT
    ),
    Action.ENGINE_ENV_UPDATE: Entry(
        "the variables of a product's engines replaced; `names` lists the new variables",
        "the endpoint, or staff",
        {"version": int, "names": list, **_SIGNED},
        shown=("version", "names"),
        about=About.PRODUCT,
    ),
    Action.ADMIN_KEY_ISSUE: Entry(
        "admin key issued; `name` is the new key's name, `admin_key` the name of the key used for the request",
        "the endpoint, or staff",
        {**_KEY, "name": str, "expires_at": str},
        about=About.FLEET,
    ),
    Action.ADMIN_KEY_REVOKE: Entry("admin key revoked", "the endpoint, or staff", {**_KEY, "name": str}, about=About.FLEET),
    Action.MASTER_KEY_ROTATE: Entry(
        "all encrypted values are under the first master key now, except the `unreadable` values that no master key opens",
        "`manage.py rotate_master_key`, at its end",
        {"reencrypted": int, "unreadable": int},
        about=About.FLEET,
    ),
    Action.DEPLOYMENT_TAKEN_OVER: Entry(
        "a database that was restored or moved, or whose deployment has a new name, is this deployment's now, with its engines",
        "`manage.py take_over`",
        _DEPLOYMENT,
        about=About.FLEET,
    ),
    Action.DEPLOYMENT_SEPARATED: Entry(
        "the copy of a database is a deployment of its own now; `engines` of the original were disowned",
        "`manage.py separate_copy`, at its end",
        {**_DEPLOYMENT, "engines": int},
        about=About.FLEET,
    ),
    Action.STAFF_LOGIN: Entry(
        "a member of staff logged in; `method` is `password`, `password_and_code`, `password_and_recovery_code` or `provider`"
        " (single sign-on)",
        "the log-in page",
        {"method": str},
        about=About.FLEET,
    ),
    Action.STAFF_LOGIN_FAILED: Entry(
        "a log-in was refused, or a password asked for once more was wrong; `rule` says why, and `user` is the name given, if a"
        " user has this name (otherwise it may be a password, typed into the wrong field); a row with `count` sums up `count`"
        " further refusals in the minute after `since`: `users` counts up to 20 pairs of a user's name and an address, `more`"
        " the refusals of all others",
        "the log-in page, and pages that ask for the password again",
        {"rule": str, "user": str, "count": int, "since": str, "users": dict, "more": int},
        about=About.FLEET,
    ),
    Action.STAFF_LOGOUT: Entry("a member of staff logged out", "staff", about=About.FLEET),
    Action.STAFF_CHANGE: Entry(
        "a user or a group of the admin was `created`, `changed` or `removed` (`change`): `user` or `group` is its name, `fields`"
        " has the changed fields, and `before` and `after` their values; no row has the value of a password or a second factor",
        "staff, single sign-on (`cause` is `provider`), `migrate` (`cause` is `roles`), or another command of `manage.py`"
        " (`cause` is its name)",
        {"user": str, "group": str, "change": str, "fields": list, "before": dict, "after": dict, "cause": str},
        about=About.FLEET,
    ),
    Action.RETENTION_PRUNE: Entry(
        "a retention run: `partitions` dropped, and partitions `postponed` to the next run because a session was using them; the"
        " ended `operations` and destroyed `engines` that were removed with the log's last rows of them",
        "the keeper",
        dict.fromkeys(("rows", "operations", "engines", "standard_days", "probe_days"), int)
        | dict.fromkeys(("partitions", "postponed"), list),
        about=About.FLEET,
        takes=Takes.RUN,
    ),
    Action.AUDIT_CHECK: Entry(
        "a check found that log and registry agree: `engines` and `rows` were compared, `unproven` rows were in no sum; `upto` is"
        " the row number for a later check, `fleet` the sum of all engines' states there, `since` where this check began",
        "`manage.py audit_check`, at its end",
        {"engines": int, "rows": int, "unproven": int, "upto": int, "fleet": str, "since": int},
        about=About.FLEET,
        takes=Takes.RUN,
    ),
}

CLAMPED = "clamped_from"  # metadata key added by `audit.trail` to a row with a timestamp outside the existing partitions
