"""Django's settings, typed, for all packages but `config`.

Import `settings` from here instead of from `django.conf`, whose attributes are `Any` to a type checker. Both modules export a
single object: a change by a test to Django's settings is visible here, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from django.conf import settings as _settings

from common.env import Env


class Settings(Protocol):
    """Our settings, and a few of Django's, as far as they are read outside `config`."""

    @property
    def ENV(self) -> Env:
        """Every `ORCH_*` variable."""

    @property
    def BASE_DIR(self) -> Path:
        """The folder of the checkout, or of the installation."""

    @property
    def ENGINE_ENV(self) -> Mapping[str, str]:
        """The variables handed on to every engine (`ORCH_ENGINE_ENV_PASSTHROUGH`)."""

    @property
    def ENGINES_ROOT(self) -> Path:
        """The folder for the files of subprocess engines."""

    @property
    def SECRET_KEY(self) -> str:
        """Django's secret key (`ORCH_SECRET_KEY`)."""

    @property
    def REDIS_URL(self) -> str:
        """The connection URL of Valkey."""

    @property
    def PROCESS(self) -> str:
        """The name of the current process in `config.processes`; empty for a process outside the list."""

    @property
    def PRUNED_WITH_THE_LOG(self) -> list[str]:
        """Functions of upper floors that the keeper calls at the end of a retention run, by their dotted names."""

    @property
    def DATABASES(self) -> Mapping[str, dict[str, Any]]:
        """Django's databases: the application's role (`default`) and the owner's role (`owner`)."""


settings = cast(Settings, _settings)
