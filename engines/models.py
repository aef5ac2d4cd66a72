"""Models of hosts, engines and operations, with their named queries."""

import uuid
from typing import ClassVar, Self

from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now

from common import characters
from common.context import Call
from engines.states import (  # handed on: callers have models and words from one module
    BESIDE as BESIDE,
    IS_OPEN as IS_OPEN,
    NO_VOLUME as NO_VOLUME,
    OPEN as OPEN,
    Kind as Kind,
    OperationState as OperationState,
    Queue as Queue,
    Status as Status,
    Trigger as Trigger,
)
from policy.models import Product


class EngineQuerySet(models.QuerySet["Engine"]):
    """Queries of engines."""

    def living(self) -> Self:
        """Every engine that is not destroyed."""
        return self.filter(destroyed_at=None)

    def differing(self) -> Self:
        """Living engines whose instance is not made of what the settings and the engine's row say, by the last sweep."""
        return self.living().exclude(differs__in=["", NO_VOLUME])

    def without_volume(self) -> Self:
        """Living engines that have run before and of whose volumes the runtime knows nothing, by the last sweep."""
        return self.living().filter(differs=NO_VOLUME)

    def locked(self, *, skip_locked: bool = False) -> Self:
        """Lock the rows until the transaction ends; `skip_locked` leaves out rows locked by other transactions.

        The lock (FOR NO KEY UPDATE) still permits new rows that refer to a locked row.
        """
        return self.select_for_update(no_key=True, skip_locked=skip_locked)


class OperationQuerySet(models.QuerySet["Operation"]):
    """Queries of operations."""

    def open(self) -> Self:
        """Every pending or running operation."""
        return self.filter(state__in=OPEN)

    def held(self, operation_id: uuid.UUID, attempt: int) -> Self:
        """The operation while the attempt may write to it; no row once a later attempt has claimed it, or after its end."""
        return self.filter(pk=operation_id, attempt=attempt, state=OperationState.RUNNING)


class Deployment(models.Model):
    """A single row: whose engines the registry has. Written by `engines.deployment`."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    name = models.TextField(help_text="ORCH_DEPLOYMENT.")
    system = models.BigIntegerField(help_text="System identifier of PostgreSQL's cluster.")
    database = models.BigIntegerField(help_text="Object id of the database in the cluster.")

    class Meta:
        default_permissions = ()  # no page shows the row
        constraints = (models.CheckConstraint(condition=Q(id=1), name="deployment_is_one_row"),)

    def __str__(self) -> str:
        return self.name


class Host(models.Model):
    """A machine that runs engines. The table has a single row for now."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.TextField(unique=True)
    created_at = models.DateTimeField(db_default=Now())
    identity = models.TextField(
        db_default="", blank=True, help_text="Changes when the host or its runtime has been started again."
    )
    unreachable_since = models.DateTimeField(null=True, help_text="The runtime does not answer: its engines are unknown.")
    disk_mb = models.BigIntegerField(null=True, help_text="Size of the disk with the engines' volumes; null: not measured yet.")
    disk_free_mb = models.BigIntegerField(null=True, help_text="Free space on the disk.")
    disk_measured_at = models.DateTimeField(null=True)
    disk_low_since = models.DateTimeField(null=True, help_text="Since when the disk has too little free space or too few files.")

    class Meta:
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.name


class Engine(models.Model):
    """A user's engine, from its provision to its tombstone: a destroyed engine keeps its row."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="engines")
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="engines")
    user_id = models.TextField()
    status = models.TextField(choices=Status.choices)
    seq = models.BigIntegerField(default=1, help_text="Moves of this engine so far; every move's audit row carries it.")
    engine_version = models.TextField(help_text="Image.")
    image_digest = models.TextField(db_default="", blank=True, help_text="The image that its instance is made of.")
    port = models.IntegerField(null=True)
    memory_mb = models.IntegerField(db_default=0, help_text="Counts for this much in its host's ceiling.")
    may_run = models.BooleanField(
        db_default=False, help_text="Its instance may still run although it is failed, and keeps its room then."
    )
    disk_mb = models.IntegerField(db_default=0, help_text="The same, of its volume: the limit of its product.")
    disk_used_mb = models.IntegerField(null=True, help_text="What its volume takes; null: not measured yet.")
    disk_measured_at = models.DateTimeField(null=True)
    disk_due_at = models.DateTimeField(null=True, help_text="When the volume is measured again; null: now.")
    disk_exceeded_at = models.DateTimeField(null=True, help_text="Its `disk_exceeded` row; null while within the limit.")
    incarnation = models.IntegerField(default=1, help_text="Which of the instances made for this engine is the valid one.")
    incarnations = models.IntegerField(default=1, help_text="Incarnation numbers given out so far.")
    incarnation_mark = models.TextField(
        db_default="",
        blank=True,
        help_text="Number and random token of the valid incarnation; counts only with the number in `incarnation`.",
    )
    boot_timed_out = models.BooleanField(
        db_default=False, help_text="The last boot of its instance timed out: its next start makes the instance anew."
    )
    differs = models.TextField(
        db_default="", blank=True, help_text="Parts in which its instance differs from the settings or its row, comma-separated."
    )
    env_version = models.IntegerField(
        db_default=0, help_text="Version of the product's environment that the valid incarnation was made with; 0: none."
    )

    disowned = models.BooleanField(
        db_default=False, help_text="Belongs to the original of this copied database: its instance and volume are never touched."
    )

    key_hash = models.TextField(help_text="SHA-256 hex; empty once destroyed.")
    key_ciphertext = models.TextField(help_text="Fernet token; empty once destroyed.")
    pending_key_hash = models.TextField(default="", blank=True)
    pending_key_ciphertext = models.TextField(default="", blank=True)

    created_at = models.DateTimeField(db_default=Now())
    provisioned_at = models.DateTimeField(null=True, help_text="First time running.")
    destroyed_at = models.DateTimeField(null=True)
    last_active_at = models.DateTimeField(null=True, help_text="Last admit, to within 30 s.")

    last_health_at = models.DateTimeField(null=True, help_text="Last probe that found it healthy.")
    last_health_ok = models.BooleanField(null=True, help_text="Result of the last probe; null before the first.")
    health_row_at = models.DateTimeField(null=True, help_text="Last `health_check` row.")
    health_failures = models.IntegerField(default=0, help_text="Consecutive failed probes.")
    healthy_since = models.DateTimeField(null=True, help_text="Start of the present run of healthy probes.")
    proves = models.BooleanField(
        db_default=False, help_text="Its incarnation has proved an answer: an answer without a proof is a stranger's."
    )
    answered_at = models.DateTimeField(
        null=True, help_text="Last good answer without a proof, if no later result has counted: waits for the runtime's list."
    )
    next_probe_at = models.DateTimeField(null=True)
    restart_attempts = models.IntegerField(default=0, help_text="Automatic restarts since it was last healthy for long.")
    next_restart_at = models.DateTimeField(null=True)
    gave_up_at = models.DateTimeField(null=True)

    objects = EngineQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at", "id")
        default_permissions = ("view",)
        permissions: ClassVar = [
            ("operate_engine", "Can start, stop, sleep, wake and restart engines"),
            ("destroy_engine", "Can destroy engines"),
            ("rotate_engine_key", "Can rotate engine keys"),
            ("reveal_engine_key", "Can look at engine keys"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["next_probe_at"], condition=Q(status="running"), name="engine_probe_due"),
            models.Index(fields=["next_restart_at"], condition=Q(next_restart_at__isnull=False), name="engine_restart_due"),
            models.Index(fields=["product", "-created_at", "id"], name="engine_by_product"),
            models.Index(fields=["-created_at", "id"], name="engine_newest"),
            models.Index(fields=["host"], condition=~Q(differs=""), name="engine_differs"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["product", "user_id"], condition=Q(destroyed_at=None), name="engine_one_living_per_user"
            ),
            models.UniqueConstraint(fields=["host", "port"], condition=Q(destroyed_at=None), name="engine_one_per_port"),
            models.CheckConstraint(condition=Q(status__in=Status.values), name="engine_status_known"),
            models.CheckConstraint(
                condition=(Q(status="destroyed") & Q(destroyed_at__isnull=False))
                | (~Q(status="destroyed") & Q(destroyed_at=None)),
                name="engine_tombstone_is_destroyed",
            ),
            models.CheckConstraint(condition=Q(destroyed_at__isnull=False) | ~Q(key_hash=""), name="engine_living_has_key"),
            models.CheckConstraint(
                condition=Q(incarnation__gte=1) & Q(incarnation__lte=F("incarnations")), name="engine_incarnation_given"
            ),
            models.CheckConstraint(condition=Q(next_restart_at=None) | Q(status="failed"), name="engine_restart_only_failed"),
            # The rule of `identifiers.check_user_id`, except for the part that needs Unicode's tables.
            models.CheckConstraint(
                condition=Q(user_id__regex=r"^[^[:cntrl:]]{1,255}$") & ~Q(user_id__in=[".", ".."]),
                name="engine_user_id_printable",
            ),
            models.CheckConstraint(condition=Q(seq__gte=1), name="engine_seq_positive"),
        ]

    def __str__(self) -> str:
        return f"{characters.marked(self.user_id)} ({self.pk})"

    @property
    def mark(self) -> str:
        """The `backends.base.Ref.mark` of the valid incarnation.

        Code from before there were tokens moves `incarnation` alone: the incarnation that it made has no token.
        """
        is_of_number = self.incarnation_mark.partition("-")[0] == str(self.incarnation)
        return self.incarnation_mark if is_of_number else str(self.incarnation)


class Operation(models.Model):
    """An intent: a promised change of an engine, and its progress. The open rows are the queue."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    engine = models.ForeignKey(Engine, on_delete=models.PROTECT, related_name="operations")
    kind = models.TextField(choices=Kind.choices)
    state = models.TextField(choices=OperationState.choices, default=OperationState.PENDING)
    queue = models.TextField(choices=Queue.choices, db_default=Queue.LIFECYCLE)
    params = models.JSONField(default=dict, help_text="What makes two operations of one kind differ.")
    actor = models.TextField()
    # The call that opened the operation, and who called, as in the audit log. Null: unknown, or does not apply.
    call_id = models.UUIDField(null=True)
    request_id = models.TextField(null=True)  # noqa: DJ001
    key_id = models.UUIDField(null=True, help_text="Platform key or admin key.")
    client_ip = models.GenericIPAddressField(null=True)
    user_agent = models.TextField(null=True)  # noqa: DJ001
    on_behalf_of = models.TextField(null=True)  # noqa: DJ001
    incarnation = models.IntegerField(help_text="Incarnation that the operation leaves valid when it succeeds.")

    attempt = models.IntegerField(default=0, help_text="Fencing token: claims so far.")
    returned = models.IntegerField(
        default=0, help_text="Attempts given back because the backend did not answer; the others died."
    )
    lease_until = models.DateTimeField(null=True)
    due_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    attempt_started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    steps = models.JSONField(default=list, help_text='`[{"step", "at", "attempt"}]`, oldest first.')
    error_code = models.TextField(default="", blank=True)
    error_message = models.TextField(default="", blank=True)

    objects = OperationQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at", "id")
        default_permissions = ("view",)
        indexes: ClassVar = [
            models.Index(fields=["due_at"], condition=Q(state__in=OPEN), name="operation_due"),
            models.Index(fields=["engine", "-created_at"], name="operation_by_engine"),
            models.Index(fields=["-created_at", "id"], name="operation_newest"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["engine"], condition=Q(state__in=OPEN), name="operation_one_open_per_engine"),
            models.CheckConstraint(condition=Q(state__in=OperationState.values), name="operation_state_known"),
            models.CheckConstraint(condition=Q(kind__in=Kind.values), name="operation_kind_known"),
            models.CheckConstraint(condition=Q(queue__in=Queue.values), name="operation_queue_known"),
            models.CheckConstraint(
                condition=(Q(state__in=OPEN) & Q(finished_at=None)) | (~Q(state__in=OPEN) & Q(finished_at__isnull=False)),
                name="operation_finished_is_closed",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"

    @property
    def is_open(self) -> bool:
        """Whether the operation is pending or running."""
        return self.state in OPEN

    @property
    def trigger(self) -> Trigger:
        """Why the operation was opened."""
        cause = self.params.get("cause")
        # A later version may have further triggers: after a return to this version, their operations still have to end.
        return Trigger(cause) if cause in Trigger.values else Trigger.REQUESTED

    @property
    def call(self) -> Call:
        """The call that opened the operation: the rows of its attempts name the call. A new call for an operation without one."""
        return Call(
            call_id=self.call_id or uuid.uuid4(),
            request_id=self.request_id,
            key_id=self.key_id,
            client_ip=self.client_ip,
            user_agent=self.user_agent,
            on_behalf_of=self.on_behalf_of,
        )

    @property
    def mark(self) -> str:
        """The `backends.base.Ref.mark` of the incarnation that the operation leaves valid; a rotation draws a new token."""
        kept = str(self.incarnation) if self.kind == Kind.ROTATE_KEY else self.engine.mark
        return str(self.params.get("mark", kept))

    @property
    def env_version(self) -> int:
        """Version of the product's environment for the incarnation that the operation leaves valid."""
        return int(self.params.get("env_version", self.engine.env_version))

    @property
    def memory_mb(self) -> int:
        """Memory of the incarnation that the operation leaves valid."""
        return int(self.params.get("memory_mb", self.engine.memory_mb))


class UnregisteredQuerySet(models.QuerySet["UnregisteredEngine"]):
    """Queries of unregistered engines."""

    def present(self) -> Self:
        """Without engines that have been registered since a sweep noted them."""
        return self.filter(~Exists(Engine.objects.filter(pk=OuterRef("pk"))))


class UnregisteredEngine(models.Model):
    """An engine that the runtime has and the registry does not, by the last sweep, and the wish to remove it, if there is one."""

    engine_id = models.UUIDField(primary_key=True, editable=False)
    # By the runtime's labels; empty where they do not say.
    product_slug, user_id, image = models.TextField(blank=True), models.TextField(blank=True), models.TextField(blank=True)
    incarnation = models.IntegerField(help_text="Highest number of its instances; 0: there is only a volume.")
    has_volume = models.BooleanField()
    runs = models.BooleanField(help_text="One of its instances runs.")
    found_at = models.DateTimeField(db_default=Now(), help_text="When a sweep first found it.")

    asked_at = models.DateTimeField(null=True, help_text="When somebody asked for its removal.")
    asked_by = models.TextField(blank=True, db_default="", help_text="Actor.")
    reason = models.TextField(blank=True, db_default="")
    call = models.JSONField(null=True, help_text="The call that asked, as in the audit log.")

    objects = UnregisteredQuerySet.as_manager()

    class Meta:
        ordering = ("-found_at", "engine_id")
        default_permissions = ("view",)
        permissions: ClassVar = [
            ("adopt_unregisteredengine", "Can adopt unregistered engines"),
            ("forget_unregisteredengine", "Can remove unregistered engines with their data"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["product_slug", "user_id"], name="unregistered_by_user"),
            models.Index(fields=["-found_at", "engine_id"], name="unregistered_newest"),
        ]

    def __str__(self) -> str:
        return f"{characters.marked(self.user_id) or 'unknown user'} ({self.pk})"
