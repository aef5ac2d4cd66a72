"""The settings of staff in the admin: the second factor, and single sign-on by OpenID Connect. A part of `common.env.Env`."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings


class StaffEnv(BaseSettings):
    """The `ORCH_STAFF_*` and `ORCH_OIDC_*` variables."""

    staff_second_factor: Literal["optional", "required"] = Field(
        "optional",
        description="Whether staff who log in with a password need a second factor. With `required`, a user without a second"
        " factor can do nothing but set one up. Single sign-on leaves the second factor to the provider.",
    )
    oidc_issuer: str = Field(
        "",
        description="Issuer of the OpenID Connect provider with which staff log in, such as `https://login.example.com`. Empty:"
        " no single sign-on.",
    )
    oidc_client_id: str = Field("", description="Client id of Roundhouse at the provider.")
    oidc_client_secret: str = Field("", description="Client secret of Roundhouse at the provider.")
    oidc_name: str = Field("single sign-on", description="Name of the provider on the button of the log-in page.")
    oidc_scopes: str = Field("openid profile email", description="Scopes asked of the provider, separated by spaces.")
    oidc_groups_claim: str = Field("groups", description="Claim of the ID token with the user's groups at the provider.")
    oidc_groups: str = Field(
        "",
        description="Comma-separated pairs `provider's group=our group`, such as `platform-team=operator,security=auditor`. Each"
        " log-in gives the user exactly the groups of these pairs. A user in none of them cannot log in.",
    )

    @property
    def oidc_mapping(self) -> tuple[tuple[str, str], ...]:
        """The pairs of `oidc_groups`: a group of the provider, and the group of ours that it gives."""
        pairs = (part.strip().rpartition("=") for part in self.oidc_groups.split(",") if part.strip())
        return tuple((theirs.strip(), ours.strip()) for theirs, _, ours in pairs)

    def check_staff(self) -> None:
        """Raise ValueError for settings of single sign-on that cannot work together."""
        if not self.oidc_issuer:
            return
        missing = [name for name in ("oidc_client_id", "oidc_client_secret", "oidc_groups") if not getattr(self, name)]
        if missing:
            raise ValueError(f"ORCH_OIDC_ISSUER needs {', '.join(f'ORCH_{name.upper()}' for name in missing)}")
        if not all(theirs and ours for theirs, ours in self.oidc_mapping):
            raise ValueError("ORCH_OIDC_GROUPS: each part must be a provider's group, =, and a group of ours")
        url = urlsplit(self.oidc_issuer)
        if not url.hostname or url.query or url.fragment:
            raise ValueError("ORCH_OIDC_ISSUER must be a URL without a query, such as https://login.example.com/realms/staff")
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")):
            raise ValueError("ORCH_OIDC_ISSUER must be an https:// URL; http:// only for a provider on this machine")
        if "openid" not in self.oidc_scopes.split():
            raise ValueError("ORCH_OIDC_SCOPES must contain openid")
