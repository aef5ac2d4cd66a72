"""The causes of failed operations in words for products: a sentence per code, without a word of the runtime or of the host.

The operation's row keeps the whole message, with the runtime's words; the admin shows it to operators.
"""

from collections.abc import Mapping

from common.settings import settings

_UNKNOWN = "The engines' runtime refused the operation. Try again later, or ask the operator, who sees the runtime's message."
_NO_PORT = "No port was free for the engine. Try again later."

SENTENCES: Mapping[str, str] = {
    "boot_timeout": "The engine was not healthy within {boot_timeout_s:g} s.",
    "engine_exited": "The engine ended during its boot; its log says why.",
    "image_missing": "The engines' host does not have the image. Name another image, or ask the operator to add this one.",
    "image_mismatch": "The image that was found does not have the name that was asked for. Name its tag, or ask the operator.",
    "image_unfit": "The image declares volumes or labels that no engine may have. Name another image, or change this one.",
    "instance_differs": "The engine's instance could not be made anew. Try again, or ask the operator.",
    "other_runs": "Another instance of the engine is running. Try again, or ask the operator.",
    "instance_missing": "The engine's instance was removed before it was started. Try again, or ask the operator.",
    "port_taken": _NO_PORT,
    "port_exhaustion": _NO_PORT,
    "network_full": "The product's network has no address left. Try again later, or destroy engines.",
    "network_unguarded": "No engine can start now, because the network that keeps engines apart is not ready. Try again later.",
    "runtime_missing": "The engines' host does not have the container runtime of the product's policy. Ask the operator.",
    "runtime_not_allowed": "The operator no longer allows the container runtime of the product's policy. Ask the operator.",
    "quota_missing": "No host can give the engine's volume its quota. Ask the operator.",
    "disk_full": "No host has disk space left for the engine. Try again later.",
    "engine_env_unreadable": "The engine's variables cannot be read. Ask the operator to replace the product's environment.",
    "attempts_exhausted": "The operation was interrupted too often. Try again.",
    "backend_unavailable": "The engines' runtime did not answer in time. Try again later.",
    "backend_error": _UNKNOWN,
}
"""The sentence of each code; a code that is not here has the sentence of `backend_error`."""


def sentence(code: str) -> str:
    """The sentence for a product about an operation that failed with `code`."""
    return SENTENCES.get(code, _UNKNOWN).format(boot_timeout_s=settings.ENV.boot_timeout_s)
