"""Every setting of Roundhouse: read from the environment, typed, and refused at start when wrong.

The table in docs/operations.md is generated from this class (`manage.py generate_docs`).
"""

from ipaddress import ip_address
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from common import env_checks, socket_addresses
from common.editions import USUAL, Edition
from common.env_record import RecordEnv
from common.env_staff import StaffEnv

NETWORK_LIMIT = 900  # endpoints; a network always has fewer
LONGEST_DEPLOYMENT = 26  # characters; deployment, hyphen and engine id are a single label of a host name: at most 63


class Env(RecordEnv, StaffEnv):
    """The `ORCH_*` variables. Durations are seconds (`_S`) or days (`_DAYS`)."""

    model_config = SettingsConfigDict(env_prefix="ORCH_", frozen=True, hide_input_in_errors=True)

    WEB_WORKERS: ClassVar[dict[str, int]] = {"small": 1, "full": 2}  # defaults of `web_workers`, by edition
    REQUIRED_IN_PRODUCTION: ClassVar[tuple[str, ...]] = ("database_url", "redis_url", "master_key", "admin_key", "secret_key")
    SHORTEST_KEY: ClassVar[int] = 32  # characters of a key in production; master keys are always 44, in Fernet's format

    environment: Literal["local", "production"] = Field(
        "local", description="`local` generates secrets and embedded servers under `ORCH_HOME`; `production` does not."
    )
    home: str = Field(".local", description="Folder for state: subprocess engines; locally also secrets, servers and logs.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the web server.")
    bind: str = Field("127.0.0.1", description="IP address on which the web server listens.")
    secret_key: str = Field("", description="Django's secret key. Required in production, with at least 32 characters.")
    allowed_hosts: str = Field(
        "localhost,127.0.0.1,[::1]",
        description="Comma-separated host names accepted in requests to the web server; locally also the address in `ORCH_BIND`.",
    )
    trusted_origins: str = Field(
        "",
        description="Comma-separated origins from which forms of the admin may be posted, such as `https://admin.example.com`.",
    )
    trusted_proxies: str = Field(
        "",
        description="Comma-separated IP addresses or networks of proxies in front of the web server. Only their"
        " `X-Forwarded-For` and `X-Forwarded-Proto` count, and only they may open any number of connections.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level of log lines on stdout.")

    database_url: str = Field(
        "", description="URL of PostgreSQL, with the application's role. Empty: an embedded server (local only)."
    )
    database_owner_url: str = Field(
        "", description="URL of PostgreSQL, with the owner's role. Used only by `migrate` and by the `keeper` process."
    )
    redis_url: str = Field(
        "",
        description="URL of Valkey or Redis: `rediss://` with TLS, `redis://` or `unix://`. `?ssl_ca_certs=FILE` names the"
        " certificate authority of the server. Empty: an embedded server (local only).",
    )
    same_host: str = Field(
        "",
        description="Comma-separated host names of servers on this machine, such as the containers of compose. `check --deploy`"
        " does not ask for TLS to them.",
    )
    pg_bin: str = Field("", description="Folder of PostgreSQL binaries for the embedded server, instead of the wheel's.")

    master_key: str = Field(
        "",
        description="Fernet key that encrypts engine keys and environments. Required in production. With several, comma-separated"
        " keys, the first key encrypts, and all keys decrypt.",
    )
    admin_key: str = Field(
        "",
        description="Admin key that requests send as `X-Admin-Key`. Required in production, with at least 32 characters.",
    )

    engine_image: str = Field(
        "roundhouse-demo-engine:latest",
        description="Image of a new engine if neither the request nor the product names an image.",
    )
    engine_backend: Literal["docker", "subprocess", "memory"] = Field(
        "subprocess", description="Where engines run. `memory` is for tests."
    )
    engine_env_passthrough: str = Field(
        "", description="Comma-separated names of environment variables that every engine gets from Roundhouse."
    )
    engine_network: str = Field("engine_net", description="Prefix of the names of the engines' networks.")
    engine_bind: str = Field("127.0.0.1", description="IP address on which the ports of engines are published and probed.")
    engine_reach: Literal["port", "container"] = Field(
        "port",
        description="How workers and products reach an engine: by a `port` of the host, or as a `container` on the product's"
        " network. With `container`, workers and products have to be containers, too (`docker` only).",
    )
    engine_url_template: str = Field(
        "",
        description="Template of an engine's `url`; may contain `{port}` and `{container}`. Empty: the engine's port on"
        " `ORCH_ENGINE_BIND` (on loopback if `ORCH_ENGINE_BIND` means all addresses), or `http://{container}:8000` with"
        " `ORCH_ENGINE_REACH=container`.",
    )
    port_min: int = Field(9001, ge=1, le=65535, description="First port for engines.")
    port_max: int = Field(19000, ge=1, le=65535, description="Last port for engines.")
    catalog_mount_path: str = Field("", description="Folder mounted read-only at `/catalog` in every engine. Empty: no folder.")
    engine_memory_mb: int = Field(
        512, ge=16, description="Memory limit of an engine, in MB; a product's policy may lower the limit."
    )
    engine_cpus: float = Field(
        1.0, ge=0.01, description="CPU limit of an engine, in CPUs; a product's policy may lower the limit."
    )
    engine_pids: int = Field(
        256, ge=8, description="Limit on processes and threads of an engine; a product's policy may lower the limit."
    )
    engine_disk_mb: int = Field(
        1024,
        ge=1,
        le=1_000_000_000,
        description="Disk space, in MB, that an engine's volume may take, and counts for in `ORCH_HOST_DISK_MB`; a product's"
        " policy may set another limit. Above the limit the engine is not started, above twice the limit it is stopped.",
    )
    disk_check_interval_s: float = Field(
        60, gt=0, description="Time between two measurements of a running engine's volume; of others, 60 times as long."
    )
    host_max_engines: int = Field(
        0, ge=0, description="Limit on running engines of the host, including starts in flight; 0: no limit."
    )
    host_memory_mb: int = Field(0, ge=0, description="Memory of the host for running engines, in MB; 0: no limit.")
    host_disk_mb: int = Field(0, ge=0, description="Disk space of the host for engines' volumes, in MB; 0: no limit.")
    host_disk_low_percent: float = Field(
        10,
        ge=0,
        le=100,
        description="Free share of the disk with the engines' volumes, in percent, below which `/health` says `low`.",
    )

    # docker
    docker_url: str = Field("", description="URL of the Docker daemon. Empty: `DOCKER_HOST`, else `unix:///var/run/docker.sock`.")
    deployment: str = Field(
        "roundhouse",
        pattern="^[a-z0-9][a-z0-9-]{0,30}$",
        description="Label of all objects made on a Docker daemon. Deployments with different labels can share a daemon without"
        " touching the objects of other deployments.",
    )
    engine_user: str = Field(
        "10001:10001",
        pattern="^[1-9][0-9]*:[0-9]+$",
        description="Numeric user and group of an engine's processes; `/data` in the image has to belong to this user and group.",
    )
    engine_runtimes: str = Field(
        "runc",
        description="Comma-separated container runtimes, by the daemon's names for them, that a product's policy may choose from"
        " (`runtime`). Engines of a product that chooses none run in the first.",
    )
    engine_tmp_mb: int = Field(64, ge=1, description="Size of an engine's `/tmp`, in MB; counts against the engine's memory.")
    engine_log_mb: int = Field(
        10, ge=1, description="Size of an engine's log file, in MB; the current and the previous file are kept."
    )
    engine_disk_quota: bool = Field(
        False,
        description="Whether new volumes get a quota of the host's file system. Needs a Docker daemon whose data is on XFS,"
        " mounted with `pquota`; no engine is created on any other. `false`: volumes are only measured.",
    )
    engine_write_mb_s: int = Field(
        50,
        ge=0,
        description="Limit on what an engine writes to its host's disk, in MB per second, and on its writes: 20 per MB. Only"
        " where Docker's cgroups are version 2, because version 1 does not see buffered writes. 0: no limit.",
    )
    engine_disk_device: str = Field(
        "",
        pattern="^(/dev/[A-Za-z0-9_./-]+)?$",
        description="Block device of `ORCH_ENGINE_WRITE_MB_S`, such as `/dev/sda`, on the engines' host. Empty: the whole device"
        " with Docker's data, if that is one device.",
    )
    engine_network_size: int = Field(
        850,
        ge=1,
        description="Engines on a network of a product before the product gets a further network. Up to `ORCH_MAX_BOOTS` booting"
        f" engines may come on top; the sum of both settings has to be below {NETWORK_LIMIT}, since a Linux bridge takes 1,023.",
    )
    engine_internet: bool = Field(
        True,
        description="What engines may reach whose product has no rule `egress`: the internet, or with `false` nothing outside"
        " their host.",
    )
    engine_egress_deny: str = Field(
        "",
        description="Comma-separated IPv4 ranges that no engine can reach. Always denied, beside these, is what is not the"
        " internet: private, carrier, link-local, benchmark, documentation, multicast and reserved ranges, and 168.63.129.16.",
    )
    engine_egress_allow: str = Field(
        "",
        description="Comma-separated exceptions from the denied ranges: IPv4 ranges, each perhaps with ports, such as"
        " `10.0.5.0/24` or `10.0.5.7:8080` (TCP) or `10.0.5.7:5000-5010/udp`. The rule `egress` of a product still decides"
        " whether its engines may use them.",
    )
    engine_max_flows: int = Field(
        2000,
        ge=10,
        description="Connections that an engine may have open to the outside at a time, the exchanges of datagrams included; the"
        " host's table of connections, which all engines share, has 262,144 entries on most hosts.",
    )
    engine_flows_per_s: int = Field(
        50,
        ge=1,
        description="New connections per second that an engine may open to the outside, and ten times as many at once; a closed"
        " connection keeps its entry in the host's table for up to 120 s.",
    )
    guard_image: str = Field(
        "roundhouse-guard:latest",
        description="Image with `sh`, `nft`, `python3`, dnspython and GNU `find` for the containers that enforce the network"
        " rules of engines and measure their volumes.",
    )

    boot_timeout_s: float = Field(60, gt=0, description="Time within which a booting engine has to become healthy.")
    stop_grace_s: float = Field(30, ge=0, description="Time between SIGTERM and SIGKILL when an engine is stopped.")
    backend_timeout_s: float = Field(
        30, gt=0, description="Time limit of a call to a backend; a stop may take the stop grace in addition."
    )

    health_check_interval_s: float = Field(30, gt=0, description="Time between two probes of a running engine.")
    health_check_timeout_s: float = Field(10, gt=0, description="Connect and read time-out of a probe.")
    health_max_failures: int = Field(3, ge=1, description="Consecutive failed probes after which an engine is `failed`.")
    health_row_interval_s: float = Field(
        3600, gt=0, description="Time between two `health_check` audit rows of an engine whose health does not change."
    )
    restart_backoff_base_s: float = Field(
        5, gt=0, description="Delay before the first automatic restart; doubles with every attempt."
    )
    restart_backoff_max_s: float = Field(300, gt=0, description="Longest delay before an automatic restart.")
    restart_max_attempts: int = Field(
        8, ge=1, description="Number of automatic restarts after which Roundhouse stops restarting a failed engine."
    )
    restart_reset_s: float = Field(
        600, ge=0, description="Time of good health after which an engine's restart attempts count from zero again."
    )

    lease_s: float = Field(15, gt=0, description="Length of a worker's lease on an operation, by the database's clock.")
    lease_renew_s: float = Field(5, gt=0, description="Time between two renewals of a worker's leases.")
    resend_after_s: float = Field(
        10, gt=0, description="Time after which a due operation without a claim is sent to its queue again."
    )
    operation_max_attempts: int = Field(
        5,
        ge=1,
        description="Attempts at an operation that may die with their worker before the operation fails for good.",
    )
    operation_give_up_s: float = Field(
        900, gt=0, description="Time for which an operation retries a backend that does not answer."
    )
    processes: Edition = Field(
        USUAL,
        description="Edition of the list of processes: `small` has one worker for all queues, `full` has a process per queue.",
    )
    wake_concurrency: int = Field(
        12,
        ge=1,
        description="Operations of the queue `wake` at a time: in `full` per process `wake`, in `small` altogether.",
    )
    ops_concurrency: int = Field(
        24, ge=1, description="Operations of the queue `lifecycle` at a time: in `full` per process `ops`, in `small` altogether."
    )
    background_concurrency: int = Field(
        8,
        ge=1,
        description="Operations of the queue `background` at a time: in `full` per process `background`, in `small` altogether.",
    )
    product_max_operations: int = Field(
        10,
        ge=1,
        description="Limit on a product's boots in flight in the queues `lifecycle` and `background` together, on its wakes in"
        " flight, and per queue on its other operations in flight. Below `ORCH_MAX_BOOTS` less `ORCH_WAKE_BOOTS`, one product"
        " always leaves boots to other products.",
    )
    max_boots: int = Field(16, ge=1, description="Limit on engines booting at a time, over all products.")
    wake_boots: int = Field(4, ge=0, description="Boots out of `ORCH_MAX_BOOTS` that are reserved for wakes.")

    web_workers: int | None = Field(None, ge=1, description="Number of web processes. Unset: 1 in `small`, 2 in `full`.")
    web_threads: int = Field(
        16,
        ge=2,
        description="Threads per web process for admits and `/health`, and again as many threads for all other requests. One"
        " product gets at most three quarters of the other threads. Threads that wait for operations, or destroy engines, come"
        " in addition.",
    )
    web_connections_per_address: int = Field(
        2000,
        ge=1,
        description="Open connections of one client address per web process; IPv6 addresses count by their /64 network.",
    )
    web_waiters: int | None = Field(
        None,
        ge=0,
        description="Requests per web process that may wait for an operation at a time, shared out evenly among the products"
        " that want to wait. Requests for the same operation share a place, destroys need none, readers of the audit log have a"
        " quarter as many. Unset: half of `ORCH_WEB_THREADS`.",
    )
    wait_s: float = Field(
        30,
        gt=0,
        description="Time for which a request waits for a stop or destroy, beyond `ORCH_STOP_GRACE_S`, and for an admit, beyond"
        " `ORCH_BOOT_TIMEOUT_S`.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.port_min > self.port_max:
            raise ValueError("ORCH_PORT_MIN must not be above ORCH_PORT_MAX")
        if self.wake_boots >= self.max_boots:
            raise ValueError("ORCH_WAKE_BOOTS must be below ORCH_MAX_BOOTS, or only wakes could ever boot")
        if self.engine_network_size + self.max_boots >= NETWORK_LIMIT:
            raise ValueError(f"ORCH_ENGINE_NETWORK_SIZE and ORCH_MAX_BOOTS must be below {NETWORK_LIMIT} together")
        if self.lease_renew_s * 2 > self.lease_s:
            raise ValueError("ORCH_LEASE_S must be at least twice ORCH_LEASE_RENEW_S")
        env_checks.proxies(self.trusted_proxies)
        env_checks.image(self.engine_image)
        self._check_reach()
        env_checks.denied(self.engine_egress_deny)
        env_checks.allowed(self.engine_egress_allow)
        if self.engine_disk_quota and self.engine_backend != "docker":
            raise ValueError("ORCH_ENGINE_DISK_QUOTA needs ORCH_ENGINE_BACKEND=docker")
        env_checks.runtimes(self.runtimes)
        env_checks.master_keys(self.master_keys)
        self.check_staff()
        self.check_record()
        if self.environment == "production":
            self._check_production()
        return self

    def _check_production(self) -> None:
        missing = [f"ORCH_{name.upper()}" for name in self.REQUIRED_IN_PRODUCTION if not getattr(self, name)]
        if missing:
            raise ValueError(f"set {', '.join(missing)}: production generates no secret and starts no server")
        short = [f"ORCH_{name.upper()}" for name in ("admin_key", "secret_key") if len(getattr(self, name)) < self.SHORTEST_KEY]
        if short:
            raise ValueError(f"{' and '.join(short)}: a key must have at least {self.SHORTEST_KEY} random characters")

    def _check_reach(self) -> None:
        env_checks.bind(self.engine_bind)
        env_checks.url_template(self.url_template)
        if self.engine_reach == "container":
            if self.engine_backend != "docker":
                raise ValueError("ORCH_ENGINE_REACH=container needs ORCH_ENGINE_BACKEND=docker")
            if len(self.deployment) > LONGEST_DEPLOYMENT:
                raise ValueError(
                    f"ORCH_DEPLOYMENT may have at most {LONGEST_DEPLOYMENT} characters with ORCH_ENGINE_REACH=container"
                )

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
    def runtimes(self) -> tuple[str, ...]:
        """The allowed container runtimes; the first is the default."""
        return tuple(name for part in self.engine_runtimes.split(",") if (name := part.strip()))

    @property
    def master_keys(self) -> tuple[str, ...]:
        """The keys in `master_key`: the first key encrypts, all keys decrypt."""
        return tuple(key for part in self.master_key.split(",") if (key := part.strip()))

    @property
    def concurrency(self) -> dict[str, int]:
        """Operations carried out at a time by a process of a queue, by name of the queue."""
        return {"wake": self.wake_concurrency, "lifecycle": self.ops_concurrency, "background": self.background_concurrency}

    @property
    def shares(self) -> dict[str, int]:
        """Limits on operations in flight, by queue; empty in `full`, whose queues have processes of their own."""
        return self.concurrency if self.processes == "small" else {}

    @property
    def waiters(self) -> int:
        """Limit on requests per web process waiting for an operation at a time."""
        return self.web_threads // 2 if self.web_waiters is None else self.web_waiters

    @property
    def reserved_threads(self) -> int:
        """Threads of each kind, per web process, that a single product leaves to other products."""
        return max(1, self.web_threads // 4)

    @property
    def product_boots(self) -> int:
        """Limit on the boots of a product in flight, in all queues: an eighth of `max_boots` is left to other products."""
        return self.max_boots - self.max_boots // 8
