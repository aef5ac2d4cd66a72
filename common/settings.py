"""Django's settings, as the other floors read them: typed.

Import `settings` from here instead of from `django.conf`, whose attributes are `Any` to a type checker. It is the same object, so
whatever a test changes in Django's settings is seen here too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from django.conf import settings as _settings

from common.env import Env


class Settings(Protocol):
    """The settings of ours, and the few of Django's, that are read outside `config`."""

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
        """The folder in which engines that are processes keep their files."""

    @property
    def REDIS_URL(self) -> str:
        """Where Valkey answers."""

    @property
    def PROCESS(self) -> str:
        """The name of this process in `config.processes`; empty outside of it."""

    @property
    def DATABASES(self) -> Mapping[str, dict[str, Any]]:
        """Django's: the application's role (`default`) and the owner's (`owner`)."""


settings = cast(Settings, _settings)
