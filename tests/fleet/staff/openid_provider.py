"""A small OpenID Connect provider on loopback. It keeps to the protocol, checks its clients, and misbehaves when told to."""

import base64
import hashlib
import json
import secrets
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

CLIENT_ID, CLIENT_SECRET = "roundhouse", "the-secret-of-the-client"


@cache
def rsa_key():
    """A key of all providers of the run: making one takes long."""
    return RSAKey.generate_key(2048, {"kid": "first", "use": "sig", "alg": "RS256"})


def ec_key(kid):
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"})


class OpenIDProvider(ThreadingHTTPServer):
    """`person` logs in whenever somebody is led here. Attributes below make trouble."""

    daemon_threads = True

    def __init__(self, **person):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.issuer = f"http://127.0.0.1:{self.server_port}/realm"
        self.person = person
        self.key = rsa_key()
        self.extra_metadata = {}
        self.claims = {}  # replace those of the next tokens; None leaves a claim out
        self.sign = self.sign_well  # of the next tokens: claims → token
        self.wrong = {}  # path → (status, body) in place of the right answer
        self.slow_s = 0.0  # before each answer
        self.drip_s = 0.0  # between two bytes of each answer
        self.declines = ""  # error code in place of a code
        self.silent_about_auth_time = False
        self.asked = []  # paths, in order
        self.tokens = []  # all that was given out
        self._codes = {}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    # -- what a browser sees -------------------------------------------------------------------------------------------

    def authorize(self, query):
        """The address that the person's browser is led to after the log-in here."""
        assert query["client_id"] == CLIENT_ID
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        answer = {"state": query["state"]}
        if self.declines:
            answer["error"] = self.declines
        else:
            answer["code"] = secrets.token_urlsafe(16)
            self._codes[answer["code"]] = query
        return f"{query['redirect_uri']}?{urlencode(answer)}"

    # -- what a client sees --------------------------------------------------------------------------------------------

    def metadata(self):
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
            **self.extra_metadata,
        }

    def keys(self):
        return {"keys": [self.key.as_dict(private=False)]}

    def give_tokens(self, form, authorization):
        """Status and body of the token endpoint. The code serves once, and only with its verifier."""
        if not self._is_client(form, authorization):
            return 401, {"error": "invalid_client"}
        query = self._codes.pop(form.get("code"), None)
        if query is None or form.get("redirect_uri") != query["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != query["code_challenge"]:
            return 400, {"error": "invalid_grant", "error_description": "the verifier is wrong"}
        tokens = {
            "access_token": secrets.token_urlsafe(16),
            "token_type": "Bearer",
            "expires_in": 300,
            "id_token": self.sign(self._claims(query)),
        }
        self.tokens += [tokens["access_token"], tokens["id_token"], form["code"], form["code_verifier"]]
        return 200, tokens

    def _is_client(self, form, authorization):
        """Whether the client has shown its secret, in the way that the metadata names."""
        if "client_secret_post" in self.metadata().get("token_endpoint_auth_methods_supported", ()):
            return (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        return authorization == f"Basic {expected}"

    def _claims(self, query):
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": query["nonce"], **self.person}
        if "max_age" in query and not self.silent_about_auth_time:
            usual["auth_time"] = now
        return {name: value for name, value in (usual | self.claims).items() if value is not None}

    def sign_well(self, claims, key=None, **header):
        key = key or self.key
        header = {"alg": key.get("alg"), "kid": key.kid, **header}
        return jwt.encode(header, claims, key, registry=JWSRegistry(algorithms=[header["alg"]]))


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): ...

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        name = self._name(url.path)
        if name == "authorize" and name not in self.server.wrong:
            self.send_response(302)
            self.send_header("Location", self.server.authorize(query))
            self.end_headers()
        elif name in ("openid-configuration", "keys"):
            self._send(name, 200, self.server.metadata() if name == "openid-configuration" else self.server.keys())
        else:
            self._send(name, 200 if name == "favicon.ico" else 404, {})  # browsers complain without it

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self._send(self._name(self.path), *self.server.give_tokens(form, self.headers["Authorization"]))

    def _name(self, path):
        name = path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        time.sleep(self.server.slow_s)
        return name

    def _send(self, name, status, answer):
        status, answer = self.server.wrong.get(name, (status, answer))
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            for piece in [content] if not self.server.drip_s else (content[n : n + 1] for n in range(len(content))):
                self.wfile.write(piece)
                time.sleep(self.server.drip_s)
        except OSError:
            return  # the client has given up
