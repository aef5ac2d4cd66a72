"""The names of audit actions, and the classes by which `audit.catalogue` describes each action."""

from enum import StrEnum


class Action(StrEnum):
    """The name of an action; the value of the `action` column."""

    PROVISION_REQUESTED = "provision_requested"
    PROVISION = "provision"
    PROVISION_FAILED = "provision_failed"
    PROVISION_DENIED = "provision_denied"
    START = "start"
    START_FAILED = "start_failed"
    START_DENIED = "start_denied"
    STOP = "stop"
    STOP_FAILED = "stop_failed"
    SLEEP = "sleep"
    SLEEP_FAILED = "sleep_failed"
    WAKE = "wake"
    WAKE_FAILED = "wake_failed"
    RESTART = "restart"
    RESTART_FAILED = "restart_failed"
    ROTATE_KEY = "rotate_key"
    ROTATE_KEY_FAILED = "rotate_key_failed"
    DESTROY_REQUESTED = "destroy_requested"
    DESTROY = "destroy"
    DESTROY_FAILED = "destroy_failed"
    OPERATION_SUPERSEDED = "operation_superseded"
    ADMIT_DENIED = "admit_denied"
    CAPACITY_EXHAUSTED = "capacity_exhausted"
    HEALTH_CHECK = "health_check"
    HEALTH_FAILED = "health_failed"
    AUTO_RESTART_START = "auto_restart_start"
    AUTO_RESTART_SUCCESS = "auto_restart_success"
    AUTO_RESTART_FAILED = "auto_restart_failed"
    AUTO_RESTART_GAVE_UP = "auto_restart_gave_up"
    DISK_EXCEEDED = "disk_exceeded"
    DISK_REDUCED = "disk_reduced"
    ORPHAN_REMOVED = "orphan_removed"
    ENGINE_ADOPTED = "engine_adopted"
    ENGINE_FORGOTTEN = "engine_forgotten"
    ENGINE_DISOWNED = "engine_disowned"
    KEY_REVEAL = "key_reveal"
    POLICY_REGISTER = "policy_register"
    PRODUCT_SUSPEND = "product_suspend"
    PRODUCT_RESUME = "product_resume"
    PRODUCT_DELETE = "product_delete"
    POLICY_UPDATE = "policy_update"
    POLICY_OVERRIDE_GRANT = "policy_override_grant"
    POLICY_OVERRIDE_END = "policy_override_end"
    PLATFORM_KEY_ISSUE = "platform_key_issue"
    PLATFORM_KEY_ROTATE = "platform_key_rotate"
    PLATFORM_KEY_REVOKE = "platform_key_revoke"
    ENGINE_ENV_UPDATE = "engine_env_update"
    ADMIN_KEY_ISSUE = "admin_key_issue"
    ADMIN_KEY_REVOKE = "admin_key_revoke"
    MASTER_KEY_ROTATE = "master_key_rotate"
    DEPLOYMENT_TAKEN_OVER = "deployment_taken_over"
    DEPLOYMENT_SEPARATED = "deployment_separated"
    STAFF_LOGIN = "staff_login"
    STAFF_LOGIN_FAILED = "staff_login_failed"
    STAFF_LOGOUT = "staff_logout"
    STAFF_CHANGE = "staff_change"
    RETENTION_PRUNE = "retention_prune"
    AUDIT_CHECK = "audit_check"


class Retention(StrEnum):
    """The retention class of a row; every class has its own setting for the days kept."""

    STANDARD = "standard"
    PROBE = "probe"


class About(StrEnum):
    """What the rows of an action name; `manage.py audit_check` names a row that does not."""

    ENGINE = "engine"  # an engine, with its user and product
    PRODUCT = "product"  # a product, and no engine
    CALL = "call"  # a refused call: a product, and a user or an engine where the call had one
    UNREGISTERED = "unregistered"  # an engine that the registry does not have, and its user and product if they are known
    FLEET = "fleet"  # none of them


class Takes(StrEnum):
    """How long an action may take from its start, the row's `timestamp`, to its row, the row's `written_at`.

    `manage.py audit_check` names a row that was written later. `duration_ms` then has to agree as well.
    """

    MOMENT = "moment"  # a row without a start of its own starts with its transaction
    ATTEMPT = "attempt"  # of a worker, with the boots and stops in it
    RUN = "run"  # of the keeper, or of a check
