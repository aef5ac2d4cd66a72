"""The colour of an action's label in the admin, as the name of an Unfold label variant."""

from audit.actions import Action

_BAD = frozenset(
    {action for action in Action if action.endswith("_failed")} | {Action.HEALTH_FAILED, Action.AUTO_RESTART_GAVE_UP}
)
_GOOD = frozenset({Action.PROVISION, Action.START, Action.WAKE, Action.RESTART, Action.ROTATE_KEY, Action.AUTO_RESTART_SUCCESS})
_WARNING = frozenset(
    {action for action in Action if action.endswith("_denied")}
    | {Action.PRODUCT_SUSPEND, Action.PRODUCT_DELETE, Action.OPERATION_SUPERSEDED, Action.KEY_REVEAL, Action.ORPHAN_REMOVED}
    | {Action.DISK_EXCEEDED, Action.STAFF_CHANGE, Action.ENGINE_DISOWNED, Action.ENGINE_FORGOTTEN}
    | {Action.DEPLOYMENT_TAKEN_OVER, Action.DEPLOYMENT_SEPARATED}
)


def of(action: str) -> str:
    """Return `danger`, `success` or `warning` for the actions listed above, `info` for all others."""
    if action in _BAD:
        return "danger"
    if action in _GOOD:
        return "success"
    return "warning" if action in _WARNING else "info"
