"""Every setting of Roundhouse: read from the environment, typed, and refused at start when wrong.

The table in docs/operations.md is generated from this class (`manage.py generate_docs`).
"""

import re
from ipaddress import IPv4Network, ip_address
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from common import socket_addresses
from common.editions import USUAL, Edition

NETWORK_LIMIT = 900  # endpoints that a network never gets to
LONGEST_DEPLOYMENT = 26  # with a hyphen and an engine's id it is one label of a host's name: 63 characters

Names = Annotated[tuple[str, ...], NoDecode]


class Env(BaseSettings):
    """The `ORCH_*` variables. Durations are seconds (`_S`) or days (`_DAYS`)."""

    model_config = SettingsConfigDict(env_prefix="ORCH_", frozen=True, hide_input_in_errors=True)

    WEB_WORKERS: ClassVar[dict[str, int]] = {"small": 1, "full": 2}  # by edition, where `web_workers` is not set
    REQUIRED_IN_PRODUCTION: ClassVar[tuple[str, ...]] = ("database_url", "redis_url", "master_key", "admin_key", "secret_key")

    environment: Literal["local", "production"] = Field(
        "local", description="`local` generates secrets and embedded servers under `ORCH_HOME`; `production` does not."
    )
    home: str = Field(
        ".local", description="Folder for state: beat's schedule, subprocess engines; locally also secrets, servers, logs."
    )
    port: int = Field(8000, ge=1, le=65535, description="Port of the web server.")
    bind: str = Field("127.0.0.1", description="Address the web server listens on.")
    secret_key: str = Field("", description="Django's secret key. Required in production.")
    allowed_hosts: str = Field(
        "localhost,127.0.0.1,[::1]",
        description="Comma-separated host names the web server answers to; locally `ORCH_BIND` is one too.",
    )
    trusted_origins: str = Field(
        "", description="Comma-separated origins (`https://admin.example.com`) that may post admin forms."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Threshold of the log on stdout.")

    database_url: str = Field("", description="PostgreSQL, the application's role. Embedded when empty (local only).")
    database_owner_url: str = Field("", description="PostgreSQL, the owner's role: `migrate` and the `keeper` process only.")
    redis_url: str = Field("", description="Valkey or Redis (`redis://` or `unix://`). Embedded when empty (local only).")
    pg_bin: str = Field("", description="Folder of PostgreSQL binaries for the embedded server, instead of the wheel's.")

    master_key: str = Field(
        "",
        description="Fernet key that encrypts engine keys and environments. Required in production. Several, comma-separated: the"
        " first encrypts, all decrypt.",
    )
    admin_key: str = Field("", description="Value of `X-Admin-Key`. Required in production.")

    engine_image: str = Field("roundhouse-demo-engine:latest", description="Image of a new engine when the product names none.")
    engine_backend: Literal["docker", "subprocess", "memory"] = Field(
        "subprocess", description="Where engines run. `memory` is for tests."
    )
    engine_env_passthrough: str = Field("", description="Comma-separated names of variables handed on to every engine.")
    engine_network: str = Field("engine_net", description="Prefix of the engines' networks.")
    engine_bind: str = Field("127.0.0.1", description="IP address that an engine's port is published on, and probed on.")
    engine_reach: Literal["port", "container"] = Field(
        "port",
        description="How engines are reached: by a `port` of their host, or as a `container` on their product's network, by those"
        " who are containers too (`docker` only).",
    )
    engine_url_template: str = Field(
        "",
        description="The `url` handed to products; `{port}` and `{container}` are filled in. Empty: `{port}` on"
        " `ORCH_ENGINE_BIND` (loopback if that is every address), or `http://{container}:8000` where engines are reached as"
        " containers.",
    )
    port_min: int = Field(9001, ge=1, le=65535, description="First port for engines.")
    port_max: int = Field(19000, ge=1, le=65535, description="Last port for engines.")
    catalog_mount_path: str = Field("", description="Folder mounted read-only at `/catalog` in every engine; empty: none.")
    engine_memory_mb: int = Field(512, ge=16, description="Memory of an engine, in MB; a product's policy may lower it.")
    engine_cpus: float = Field(1.0, ge=0.01, description="CPUs of an engine; a product's policy may lower it.")
    engine_pids: int = Field(256, ge=8, description="Processes and threads of an engine; a product's policy may lower it.")
    engine_disk_mb: int = Field(1024, ge=1, description="Disk that an engine's volume counts for, in MB, in its host's ceiling.")
    host_max_engines: int = Field(0, ge=0, description="Running engines of the host, starts in flight included; 0: no ceiling.")
    host_memory_mb: int = Field(0, ge=0, description="Memory of the host for running engines, in MB; 0: no ceiling.")
    host_disk_mb: int = Field(0, ge=0, description="Disk of the host for engines' volumes, in MB; 0: no ceiling.")

    # docker
    docker_url: str = Field("", description="The Docker daemon; empty: `DOCKER_HOST`, else `unix:///var/run/docker.sock`.")
    deployment: str = Field(
        "roundhouse",
        pattern="^[a-z0-9][a-z0-9-]{0,30}$",
        description="Label of everything made on a Docker daemon; deployments that share a daemon do not see each other.",
    )
    engine_user: str = Field(
        "10001:10001",
        pattern="^[1-9][0-9]*:[0-9]+$",
        description="Numeric user and group of an engine's processes; `/data` in its image has to belong to them.",
    )
    engine_tmp_mb: int = Field(64, ge=1, description="Size of an engine's `/tmp`, in MB, a part of its memory.")
    engine_log_mb: int = Field(10, ge=1, description="Size of an engine's log, in MB; it and the one before are kept.")
    engine_network_size: int = Field(
        850,
        ge=1,
        description="Engines on one network of a product before it gets another. As many as boot at a time (`ORCH_MAX_BOOTS`) may"
        f" come on top; both together are below {NETWORK_LIMIT}, since a Linux bridge takes 1,023.",
    )
    engine_internet: bool = Field(True, description="Whether engines may open connections to the world outside their host.")
    engine_egress_deny: str = Field(
        "169.254.0.0/16",
        description="Comma-separated IPv4 ranges that engines cannot reach: metadata services, networks of the operator's own.",
    )
    guard_image: str = Field(
        "roundhouse-guard:latest",
        description="Image with `sh`, `nft` and `python3` that keeps the rules between engines in force.",
    )

    boot_timeout_s: float = Field(60, gt=0, description="How long an engine may take to become healthy.")
    stop_grace_s: float = Field(30, ge=0, description="Between SIGTERM and SIGKILL of an engine.")
    backend_timeout_s: float = Field(30, gt=0, description="Deadline of one call to a backend, beyond the stop grace.")

    health_check_interval_s: float = Field(30, gt=0, description="Between two probes of a running engine.")
    health_check_timeout_s: float = Field(10, gt=0, description="Connect and read time-out of a probe.")
    health_max_failures: int = Field(3, ge=1, description="Consecutive failed probes after which an engine is `failed`.")
    health_row_interval_s: float = Field(3600, gt=0, description="Between two `health_check` rows of an engine without a change.")
    restart_backoff_base_s: float = Field(5, gt=0, description="Delay before the first automatic restart; doubles each attempt.")
    restart_backoff_max_s: float = Field(300, gt=0, description="Cap of that delay.")
    restart_max_attempts: int = Field(8, ge=1, description="Automatic restarts before the fleet gives up on an engine.")
    restart_reset_s: float = Field(
        600, ge=0, description="Healthy for this long, an engine's restart attempts count from zero again."
    )

    lease_s: float = Field(15, gt=0, description="Lease of a worker on an operation, by the database's clock.")
    lease_renew_s: float = Field(5, gt=0, description="Between two renewals of the leases a worker holds.")
    resend_after_s: float = Field(10, gt=0, description="A due operation that nobody claimed is sent again after this.")
    operation_max_attempts: int = Field(
        5, ge=1, description="Attempts at an operation that may die in the middle before it fails for good."
    )
    operation_give_up_s: float = Field(900, gt=0, description="How long an operation tries a backend that does not answer.")
    processes: Edition = Field(
        USUAL,
        description="Edition of the list of processes: `small` has one worker for all that is done to engines, `full` a process"
        " for each queue.",
    )
    wake_concurrency: int = Field(
        12,
        ge=1,
        description="Operations that one `wake` process carries out at a time; in `small` all that are in flight in that queue.",
    )
    ops_concurrency: int = Field(24, ge=1, description="The same of `ops`; in `small` of the queue `lifecycle`.")
    background_concurrency: int = Field(8, ge=1, description="The same of `background`.")
    product_max_operations: int = Field(
        10, ge=1, description="Operations of a product that are in flight in each queue: so many that boot, so many that end."
    )
    max_boots: int = Field(16, ge=1, description="Engines that boot at a time, over all products.")
    wake_boots: int = Field(4, ge=0, description="How many of those only wakes may be.")

    web_workers: int | None = Field(None, ge=1, description="Web processes; when unset 1 in `small`, and 2 in `full`.")
    web_threads: int = Field(16, ge=2, description="Threads per web process for admits and `/health`, and as many for all else.")
    web_waiters: int | None = Field(
        None,
        ge=0,
        description="Requests per web process that may wait for an operation; half the threads when unset. Destroys have more.",
    )
    wait_s: float = Field(
        30,
        gt=0,
        description="How long a stop or destroy is waited for beyond the stop grace, and an admit beyond the boot time-out.",
    )

    audit_retention_days: int = Field(365, ge=1, description="Months older than this leave `audit_log`.")
    audit_probe_retention_days: int = Field(14, ge=1, description="The same for the rows of health probes.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.port_min > self.port_max:
            raise ValueError("ORCH_PORT_MIN must not be above ORCH_PORT_MAX")
        if self.wake_boots >= self.max_boots:
            raise ValueError("ORCH_WAKE_BOOTS must be below ORCH_MAX_BOOTS, or nothing but wakes would ever boot")
        if self.engine_network_size + self.max_boots >= NETWORK_LIMIT:
            raise ValueError(f"ORCH_ENGINE_NETWORK_SIZE and ORCH_MAX_BOOTS must be below {NETWORK_LIMIT} together")
        if self.lease_renew_s * 2 > self.lease_s:
            raise ValueError("ORCH_LEASE_S must be at least twice ORCH_LEASE_RENEW_S")
        self._check_reach()
        self._check_egress()
        for number, key in enumerate(self.master_keys, 1):
            if not _is_fernet_key(key):
                raise ValueError(f"ORCH_MASTER_KEY: key {number} of {len(self.master_keys)} is not a Fernet key")
        if self.environment == "production":
            missing = [f"ORCH_{name.upper()}" for name in self.REQUIRED_IN_PRODUCTION if not getattr(self, name)]
            if missing:
                raise ValueError(f"set {', '.join(missing)}: production generates no secret and starts no server")
        return self

    def _check_reach(self) -> None:
        try:
            ip_address(self.engine_bind)
        except ValueError as error:
            raise ValueError("ORCH_ENGINE_BIND must be an IP address") from error
        try:
            self.url_template.format(port=0, container="")
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError("ORCH_ENGINE_URL_TEMPLATE may have {port} and {container} in it, and no other braces") from error
        if self.engine_reach == "container":
            if self.engine_backend != "docker":
                raise ValueError("ORCH_ENGINE_REACH=container needs ORCH_ENGINE_BACKEND=docker")
            if len(self.deployment) > LONGEST_DEPLOYMENT:
                raise ValueError(f"ORCH_DEPLOYMENT: {LONGEST_DEPLOYMENT} characters at most where it is part of a host's name")

    def _check_egress(self) -> None:
        for part in filter(None, map(str.strip, self.engine_egress_deny.split(","))):
            if not _is_ipv4_range(part):
                raise ValueError(f"ORCH_ENGINE_EGRESS_DENY: {part!r} is no range of IPv4 addresses, as 10.0.0.0/8 is one")

    @property
    def url_template(self) -> str:
        """The `url` of an engine, with `{port}` and `{container}` to be filled in."""
        by_port = f"http://{self.engine_host}:{{port}}"
        return self.engine_url_template or ("http://{container}:8000" if self.engine_reach == "container" else by_port)

    @property
    def engine_host(self) -> str:
        """The host of a URL to an engine's port: loopback where ports are published on every address."""
        return socket_addresses.host(str(ip_address(self.engine_bind)))

    @property
    def master_keys(self) -> tuple[str, ...]:
        """The keys in `master_key`: the first encrypts, all decrypt."""
        return tuple(key for part in self.master_key.split(",") if (key := part.strip()))

    @property
    def concurrency(self) -> dict[str, int]:
        """By queue of operations: how many one process of that queue carries out at a time."""
        return {"wake": self.wake_concurrency, "lifecycle": self.ops_concurrency, "background": self.background_concurrency}

    @property
    def shares(self) -> dict[str, int]:
        """By queue: how many operations may be in flight. Empty in `full`, whose queues have processes of their own."""
        return self.concurrency if self.processes == "small" else {}

    @property
    def waiters(self) -> int:
        """Requests per web process that may wait for an operation at a time."""
        return self.web_threads // 2 if self.web_waiters is None else self.web_waiters


def _is_ipv4_range(text: str) -> bool:
    """Or one address; with a length of the network's part, not a mask, which nftables does not take."""
    try:
        IPv4Network(text, strict=False)
    except ValueError:
        return False
    return "." not in text.partition("/")[2]


def _is_fernet_key(key: str) -> bool:
    """32 bytes in base64. (Fernet itself reads up to the first `=` and takes what follows for nothing.)"""
    return re.fullmatch(r"[A-Za-z0-9_+/-]{43}=", key) is not None
