"""The text that `make run` prints once everything is up: the admin's address, and a tour of the API to paste into a shell."""

from pathlib import Path

from config.local.home import USERNAME


def render(home: Path, api: str, admin_key: str, engines: str, edition: str) -> str:
    """The whole text: `api` is the web server's URL, `engines` the backend and its reason, `edition` the edition of processes.

    The curl lines need only curl and python3, and can be pasted repeatedly.
    """
    file = home / "admin-password"
    password = file.read_text() if file.exists() else "(the password that you chose in the admin)"
    return f"""
Roundhouse is up. Press Ctrl-C to stop. Data, logs and secrets stay in {home}

  Admin      {api}/admin/
  User       {USERNAME}
  Password   {password}
  Engines    {engines}
  Processes  {edition} (set by ORCH_PROCESSES; see docs/operations.md)

Paste these lines into another terminal. They register a product, admit a user (which makes an engine), call the engine, read the
audit log, and destroy the engine:

{tour(api, admin_key)}"""


PICK = "import functools, json, sys; print(functools.reduce(lambda found, key: found[key], sys.argv[1:], json.load(sys.stdin)))"


def tour(api: str, admin_key: str) -> str:
    """The curl lines, indented, a line per step."""
    send = "-H 'Content-Type: application/json' -d"
    key = """-H "X-Platform-Key: $KEY\""""
    lines = (
        f"API={api}; SLUG=demo-$(date +%s); pick() {{ python3 -c '{PICK}' \"$@\"; }}",
        f"""PRODUCT=$(curl -sS $API/products/register -H 'X-Admin-Key: {admin_key}' {send}"""
        """ '{"slug": "'$SLUG'", "display_name": "Demo"}'); echo "$PRODUCT\"""",
        """KEY=$(echo "$PRODUCT" | pick platform_api_key)""",
        f"""ENGINE=$(curl -sS $API/engines/alice/admit {key} {send} '{{"auto_provision": true}}'); echo "$ENGINE\"""",
        """URL=$(echo "$ENGINE" | pick engine url); ENGINE_KEY=$(echo "$ENGINE" | pick engine api_key)""",
        f"""curl -sSN $URL/execute -H "X-Engine-Key: $ENGINE_KEY" {send} '{{"input": "hello"}}'""",
        f"""curl -sS "$API/audit?user_id=alice" {key}; echo""",
        f"""curl -sS -X DELETE $API/engines/alice {key}; echo""",
    )
    return "".join(f"  {line}\n" for line in lines)
