"""Django's settings, all derived from `common.env.Env`; a wrong environment ends the process here with exit code 2."""

import os
import sys
from pathlib import Path
from typing import Any

import dj_database_url
from django.templatetags.static import static
from django.urls import reverse_lazy
from pydantic import ValidationError

from common import socket_addresses, statements
from common.env import Env
from config import logs
from config.local import embedded

BASE_DIR = Path(__file__).resolve().parent.parent

if os.environ.get("ORCH_ENVIRONMENT", "local") == "local":
    for _name, _value in embedded.environment(embedded.home()).items():
        os.environ.setdefault(_name, _value)
try:
    ENV = Env()
except ValidationError as refused:
    for _error in refused.errors():
        _field = ".".join(str(part) for part in _error["loc"])
        print(f"settings: ORCH_{_field.upper()}: {_error['msg']}" if _field else f"settings: {_error['msg']}", file=sys.stderr)
    sys.exit(2)

PRODUCTION = ENV.environment == "production"

# -- Django ------------------------------------------------------------------------------------------------------------

DEBUG = False
SECRET_KEY = ENV.secret_key
ALLOWED_HOSTS = [host for host in ENV.allowed_hosts.split(",") if host]
if not PRODUCTION:
    ALLOWED_HOSTS.append(socket_addresses.host(ENV.bind))  # the address that `make run` calls and prints
CSRF_TRUSTED_ORIGINS = [origin for origin in ENV.trusted_origins.split(",") if origin]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.web.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
USE_I18N = False

PROCESS = os.environ.get("ORCH_PROCESS", "")
_ALL_APPS = [
    "unfold.apps.BasicAppConfig",
    "fleet.staff.apps.AdminConfig",  # Django's admin, with the site `fleet.staff.site`
    "fleet.staff",  # before Django's users: two commands about users are ours
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django_filters",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",  # Swagger UI, as static files
    "audit",
    "policy",
    "engines",
    "fleet",
    "fleet.jobs",
]
# A process of Celery serves no pages, and thus loads neither the admin nor the OpenAPI packages.
_APPS_OF_WORKERS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.postgres", "audit", "policy", "engines"]
_APPS = {"beat": [], "keeper": ["audit"]} | dict.fromkeys(("worker", "wake", "ops", "background", "health"), _APPS_OF_WORKERS)
INSTALLED_APPS: list[str] = _APPS.get(PROCESS, _ALL_APPS)

MIDDLEWARE = [
    "fleet.middleware.no_store",
    "fleet.middleware.begin_call",
    "fleet.middleware.no_trace",
    "fleet.middleware.thread_of_product",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "fleet.csp.admin_pages",
    "fleet.middleware.raw_path",
    "fleet.middleware.plain_forms",
    "fleet.middleware.Sessions",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "fleet.middleware.Authentication",
    "fleet.middleware.Messages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "fleet" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

AUTHENTICATION_BACKENDS = ["fleet.staff.backend.StaffBackend"]
PASSWORD_HASHERS = ["fleet.staff.hashers.TakingTurns"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}", "OPTIONS": options}
    for name, options in (
        ("UserAttributeSimilarityValidator", {}),
        ("MinimumLengthValidator", {"min_length": 12}),
        ("CommonPasswordValidator", {}),
    )
] + [{"NAME": "fleet.staff.passwords.VariedPassword"}]
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")
SESSION_ENGINE = "fleet.staff.sessions"
SESSION_COOKIE_AGE = 12 * 3600  # of the cookie; `fleet.staff.sessions` decides when a session ends
SESSION_COOKIE_PATH = "/admin/"

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles" if PRODUCTION else None  # locally WhiteNoise finds the files in the apps' folders
WHITENOISE_USE_FINDERS = not PRODUCTION
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if PRODUCTION
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

# -- Security ----------------------------------------------------------------------------------------------------------

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PRODUCTION
SESSION_COOKIE_HTTPONLY = True
SECURE_SSL_REDIRECT = False  # products inside the network speak plain HTTP; TLS ends at the proxy in front of the admin
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if PRODUCTION else None
SECURE_HSTS_SECONDS = 31_536_000 if PRODUCTION else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = PRODUCTION
SILENCED_SYSTEM_CHECKS = ["security.W008"]  # see SECURE_SSL_REDIRECT
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "fleet.errors.csrf_failed"
# The default forbids everything. The admin has the policy `fleet.csp.ADMIN`, and `/docs/` `fleet.csp.DOCS`; the rest is not HTML.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {"default-src": ["'none'"], "base-uri": ["'none'"], "form-action": ["'none'"], "frame-ancestors": ["'none'"]}
}

# -- Processes of Celery: their queues, and their numbers of threads -----------------------------------------------------

# Workers of operations, by process: the queues, and the number of operations at a time.
OPERATION_WORKERS = {
    "wake": (["wake"], ENV.wake_concurrency),
    "ops": (["lifecycle"], ENV.ops_concurrency),
    "background": (["background"], ENV.background_concurrency),
    "worker": (["wake", "lifecycle", "background"], sum(ENV.concurrency.values())),
}
# All consumers, by process: the queues, and the number of threads. Claimed operations never occupy all threads of `worker`: five
# are left for periodic jobs (a measurement of volumes takes seconds), for engines' logs, and for messages of operations that
# cannot be claimed yet.
CONSUMERS = OPERATION_WORKERS | {
    "worker": ([*OPERATION_WORKERS["worker"][0], "health"], OPERATION_WORKERS["worker"][1] + 5),
    "health": (["health"], 3),
    "keeper": (["keeper"], 1),
}
PRUNED_WITH_THE_LOG = ["engines.retention.prune"]  # called by the keeper, which knows no floor above the log

# -- PostgreSQL: the application's role, and the owner's role if configured ----------------------------------------------


def _pool_size() -> int:
    """Connections in the pool: one per thread of the process, plus 4 for background threads; `web` has two sets of threads."""
    return (max(4, CONSUMERS[PROCESS][1]) if PROCESS in CONSUMERS else 2 * ENV.web_threads) + 4


def _database(url: str) -> dict[str, Any]:
    """Django's entry for `url`, with a small pool of checked connections per process."""
    entry: dict[str, Any] = dict(dj_database_url.parse(url or "postgresql://unset/unset", engine="common.pooled"))
    entry["DISABLE_SERVER_SIDE_CURSORS"] = True  # behind a pooler, a cursor does not outlast its transaction
    entry["OPTIONS"] = {
        # Of several hosts (`?host=a,b`), the one that can be written. On a single host the pool asks.
        **({"target_session_attrs": "read-write"} if "," in str(entry.get("OPTIONS", {}).get("host", "")) else {}),
        **entry.get("OPTIONS", {}),
        "connect_timeout": 5,
        "prepare_threshold": 0,  # for `common.statements`: prepare at the first use; Django's own cursors never prepare
        "application_name": PROCESS or "roundhouse",
        "pool": {
            "min_size": 1,
            "max_size": _pool_size(),
            "timeout": 5,
            # The pool's own retries double their pauses: with a long time-out, the pool would stay unusable after an outage
            # for as long again as the outage.
            "reconnect_timeout": 1,
            "max_idle": 60,
        },
    }
    return entry


DATABASES = {
    "default": _database(ENV.database_url),
    "owner": {**_database(ENV.database_owner_url or ENV.database_url), "TEST": {"MIRROR": "default"}},
}
DATABASES["owner"]["OPTIONS"] = {k: v for k, v in DATABASES["owner"]["OPTIONS"].items() if k != "pool"}
# `migrate` gives the application's role time limits. They are not for the owner's work, even where one role is both. (Set in
# the session, because PgBouncer refuses `options` before `common.pooled` can say what is wrong.)
DATABASES["owner"]["SESSION"] = dict.fromkeys(statements.LIMITS, "0")

# -- REST API ----------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["policy.auth.PlatformKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["policy.auth.IsProduct"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["common.bodies.Json"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "common.bodies.OnlyJson",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "URL_FORMAT_OVERRIDE": None,
    "EXCEPTION_HANDLER": "fleet.errors.handle",
    "DATETIME_FORMAT": "%Y-%m-%dT%H:%M:%S.%fZ",
    "UNAUTHENTICATED_USER": None,
    "COERCE_DECIMAL_TO_STRING": False,
}

SPECTACULAR_SETTINGS = {
    "DEFAULT_GENERATOR_CLASS": "fleet.openapi.document.Generator",
    "TITLE": "Roundhouse",
    "DESCRIPTION": "A fleet manager for per-user engines: products provision and use engines, the operator registers products.",
    "VERSION": "0.1.0",
    "OAS_VERSION": "3.1.1",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "POSTPROCESSING_HOOKS": [],
    "SORT_OPERATIONS": False,
    "SORT_OPERATION_PARAMETERS": False,
    "ENFORCE_NON_BLANK_FIELDS": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
}

# -- Celery ------------------------------------------------------------------------------------------------------------

REDIS_URL = ENV.redis_url
CELERY_BROKER_URL = ENV.redis_url.replace("unix://", "redis+socket://", 1)
if ENV.redis_url.startswith("rediss://"):  # the same defaults as in `common.valkey`; the URL's own `ssl_...` come before them
    CELERY_BROKER_USE_SSL = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True  # only says how: no task of ours is acknowledged late
_BROKER_TIMEOUT_S = 5.0 if PROCESS in CONSUMERS else 1.0  # a consumer's read blocks for up to 1 s
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": _BROKER_TIMEOUT_S,
    "socket_connect_timeout": 1.0,
    "ack_emulation": False,  # messages in a worker's hands are not kept in Valkey: the operation's row is the queue
}
# Whoever reaches Valkey can send messages: see `config.broker` for what a message can and cannot do.
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "lifecycle"
CELERY_TASK_ROUTES = {
    "engines.tasks.run_operation": {"queue": "lifecycle"},  # unless `queues.send` names a queue
    "engines.tasks.*": {"queue": "health"},
    "policy.tasks.*": {"queue": "health"},
    "audit.tasks.*": {"queue": "keeper"},
}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

# -- Engines -----------------------------------------------------------------------------------------------------------

ENGINES_ROOT = embedded.home() / "engines"
ENGINE_ENV = {name: os.environ[name] for name in ENV.engine_env_passthrough.split(",") if name in os.environ}

# -- Logs --------------------------------------------------------------------------------------------------------------

LOGGING_CONFIG = None
logs.configure(ENV.log_level)

# -- Admin -------------------------------------------------------------------------------------------------------------


def _entry(title: str, icon: str, view: str, permission: str = "") -> dict[str, Any]:
    """A line of the sidebar, shown to users with `permission`; to all users if empty."""
    shown = {"permission": lambda request: request.user.has_perm(permission)} if permission else {}
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{view}"), **shown}


UNFOLD = {
    "SITE_TITLE": "Roundhouse",
    "SITE_HEADER": "Roundhouse",
    "SITE_SUBHEADER": "Fleet manager",
    "SITE_SYMBOL": "train",
    "SITE_URL": None,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("fleet/favicon.svg")}],
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_HISTORY": False,  # the history of everything is the audit log
    "STYLES": [lambda request: static("fleet/admin.css")],
    "DASHBOARD_CALLBACK": "fleet.dashboard.fill",
    "ACCOUNT": {"navigation": "fleet.staff.site.account_menu"},
    "SIDEBAR": {
        "navigation": [
            {
                "title": "Fleet",
                "items": [
                    _entry("Overview", "dashboard", "index"),
                    _entry("Engines", "memory", "engines_engine_changelist", "engines.view_engine"),
                    _entry("Operations", "pending_actions", "engines_operation_changelist", "engines.view_operation"),
                    _entry(
                        "Unregistered engines",
                        "help_center",
                        "engines_unregisteredengine_changelist",
                        "engines.view_unregisteredengine",
                    ),
                    _entry("Periodic jobs", "schedule", "jobs_job_changelist", "jobs.view_job"),
                    _entry("Products", "apps", "policy_product_changelist", "policy.view_product"),
                    _entry("Admin keys", "vpn_key", "policy_adminkey_changelist", "policy.view_adminkey"),
                ],
            },
            {"title": "Record", "items": [_entry("Audit log", "history", "audit_auditrow_changelist", "audit.view_auditrow")]},
            {
                "title": "Staff",
                "items": [
                    _entry("Users", "person", "auth_user_changelist", "auth.view_user"),
                    _entry("Groups", "group", "auth_group_changelist", "auth.view_group"),
                ],
            },
        ]
    },
}

# -- Celery: imported here, because every process with settings may send tasks. The import is not in `config/__init__`: importing
# -- Celery takes half a second, and the launcher and the supervisor's children need no Celery before their own program starts.

from config import celery as _app  # noqa: E402, F401
