"""The API for the operator: products, keys, environments and the whole audit log."""

from collections.abc import Mapping, Sequence
from typing import Any

from roundhouse_client import results
from roundhouse_client.record import Record
from roundhouse_client.results import read
from roundhouse_client.transport import READ_S, RETRIES, given


class Operator(Record):
    """The operator's client. Every method raises ApiError, Unreachable. Audit rows of its calls name `on_behalf_of`, if given."""

    def __init__(
        self, url: str, admin_key: str, *, on_behalf_of: str = "", retries: int = RETRIES, timeout_s: float = READ_S
    ) -> None:
        keys = {"X-Admin-Key": admin_key}
        super().__init__(url, keys, on_behalf_of=on_behalf_of, retries=retries, timeout_s=timeout_s)

    def register_product(self, slug: str, display_name: str, policy: Mapping[str, Any] | None = None) -> results.Registered:
        """Register a product; the answer has its first platform key."""
        body = {"slug": slug, "display_name": display_name, "policy": dict(policy or {})}
        return read(results.Registered, self._call("POST", "/products/register", body=body))

    def replace_policy(self, product_id: str, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the whole policy; returns the policy in force."""
        answer = self._call("PUT", f"/products/{product_id}/policy", body={"policy": dict(policy)})
        return dict(answer["policy"])

    def explain(
        self,
        product_id: str,
        verb: str,
        user_id: str,
        engine_version: str | None = None,
        *,
        auto_provision: bool | None = None,
        auto_wake: bool | None = None,
    ) -> results.Explanation:
        """Dry-run a product's call: its outcome, and the deciding rules."""
        body = {"product_id": product_id, "verb": verb, "user_id": user_id, "engine_version": engine_version}
        flags = {"auto_provision": auto_provision, "auto_wake": auto_wake}
        return read(results.Explanation, self._call("POST", "/policy/explain", body=given(**body, **flags), is_read=True))

    def list_overrides(self, product_id: str) -> list[results.Override]:
        """Every override of the product's policy, also ended overrides, newest first."""
        return [read(results.Override, each) for each in self._call("GET", f"/products/{product_id}/overrides")["overrides"]]

    def grant_override(self, product_id: str, rule: str, value: Any, reason: str, expires_in_s: int) -> results.Override:
        """Give a rule of the policy a new value for `expires_in_s` seconds."""
        body = {"rule": rule, "value": value, "reason": reason, "expires_in_s": expires_in_s}
        return read(results.Override, self._call("POST", f"/products/{product_id}/overrides", body=body))

    def end_override(self, product_id: str, override_id: str) -> results.Override:
        """End an override before it expires."""
        return read(results.Override, self._call("DELETE", f"/products/{product_id}/overrides/{override_id}"))

    def suspend_product(self, product_id: str, reason: str, *, stop_engines: bool = False) -> results.Suspension:
        """Refuse calls that would make the product's engines serve; with `stop_engines`, also stop the serving engines."""
        body = {"reason": reason, "stop_engines": stop_engines}
        return read(results.Suspension, self._call("POST", f"/products/{product_id}/suspend", body=body))

    def resume_product(self, product_id: str, reason: str) -> results.Suspension:
        """End the suspension; no engine is started."""
        return read(results.Suspension, self._call("POST", f"/products/{product_id}/resume", body={"reason": reason}))

    def delete_product(self, product_id: str) -> results.Deleted:
        """Delete a product without living engines, for good."""
        return read(results.Deleted, self._call("DELETE", f"/products/{product_id}"))

    def get_engine_env(self, product_id: str) -> results.EngineEnv:
        """The names of the environment variables of the product's engines."""
        return read(results.EngineEnv, self._call("GET", f"/products/{product_id}/engine-env"))

    def replace_engine_env(self, product_id: str, env: Mapping[str, str]) -> results.EngineEnv:
        """Replace all environment variables of the product's engines."""
        return read(results.EngineEnv, self._call("PUT", f"/products/{product_id}/engine-env", body={"env": dict(env)}))

    # -- keys ------------------------------------------------------------------------------------------------------------

    def list_platform_keys(self, product_id: str) -> list[results.PlatformKey]:
        """Every platform key of the product, also ended keys, newest first."""
        answer = self._call("GET", f"/products/{product_id}/platform-keys")
        return [read(results.PlatformKey, key) for key in answer["platform_keys"]]

    def issue_platform_key(
        self, product_id: str, scopes: Sequence[str] | None = None, expires_in_s: int | None = None
    ) -> results.PlatformKey:
        """Issue an additional platform key; only the answer has the key's plaintext."""
        body = given(scopes=scopes and list(scopes), expires_in_s=expires_in_s)
        return read(results.PlatformKey, self._call("POST", f"/products/{product_id}/platform-keys", body=body))

    def rotate_platform_key(
        self,
        product_id: str,
        *,
        key_id: str | None = None,
        overlap_s: int | None = None,
        scopes: Sequence[str] | None = None,
        expires_in_s: int | None = None,
    ) -> results.RotatedPlatformKey:
        """Issue a platform key in place of all keys, or of `key_id`. The replaced keys stay valid for `overlap_s` seconds."""
        body = given(key_id=key_id, overlap_s=overlap_s, scopes=scopes and list(scopes), expires_in_s=expires_in_s)
        return read(results.RotatedPlatformKey, self._call("POST", f"/products/{product_id}/rotate-platform-key", body=body))

    def revoke_platform_key(self, product_id: str, key_id: str) -> results.PlatformKey:
        """Revoke a platform key at once."""
        return read(results.PlatformKey, self._call("DELETE", f"/products/{product_id}/platform-keys/{key_id}"))

    def list_admin_keys(self) -> list[results.AdminKey]:
        """Every named admin key, also ended keys, newest first."""
        return [read(results.AdminKey, key) for key in self._call("GET", "/admin-keys")["admin_keys"]]

    def issue_admin_key(self, name: str, expires_in_s: int | None = None) -> results.AdminKey:
        """Issue an additional admin key; only the answer has the key's plaintext."""
        return read(results.AdminKey, self._call("POST", "/admin-keys", body=given(name=name, expires_in_s=expires_in_s)))

    def revoke_admin_key(self, key_id: str) -> results.AdminKey:
        """Revoke an admin key at once."""
        return read(results.AdminKey, self._call("DELETE", f"/admin-keys/{key_id}"))
