"""Who may ask for what, on a server with API keys.

The middleware stands in front of every route, so a new route is closed until somebody opens it. Only health is open:
probes hold no secrets, and its answers have none. Metrics are closed, since they show which models are used and how
much; Prometheus can send a key, too (`authorization` in its scrape_config).

A browser has no way to send a Bearer token with the address of a page, so a key is also accepted as the password of
HTTP Basic, for which browsers ask. They then send it with every request, even one that another site makes them send:
so a key that came this way never administers.
"""

import base64
import binascii
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.keys import Keyring, Role
from serve.metrics import UNKNOWN_MODEL, Metrics
from serve.problems import ProblemError, problem_response
from serve.record import current_record
from serve.service import service_of
from serve.settings import ServeSettings

OPEN = ("/v2/health/live", "/v2/health/ready", "/v2/health/startup")

# Source: RFC 9110, 11.6.1 (several challenges); RFC 7617 for Basic's charset.
_CHALLENGES = 'Bearer realm="segpress", Basic realm="segpress", charset="UTF-8"'


@dataclass(frozen=True)
class Caller:
    """The holder of the key that came with a request."""

    name: str
    may_administer: bool


class Access:
    """ASGI middleware that lets only requests with a known key through."""

    def __init__(self, app: ASGIApp, keyring: Keyring, metrics: Metrics) -> None:
        self._app = app
        self._keyring = keyring
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                caller = scope["state"]["caller"] = caller_of(Headers(scope=scope), self._keyring)
                if (record := current_record()) is not None:
                    record.key = caller.name
            except ProblemError as problem:
                self._metrics.refused(UNKNOWN_MODEL, problem.reason)
                await problem_response(problem, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def caller_of(headers: Headers, keyring: Keyring) -> Caller:
    """The caller whose key is in the headers.

    Raises ProblemError 401 without a key, or for one that is not known.
    """
    scheme, _, credentials = headers.get("authorization", "").strip().partition(" ")
    match scheme.lower():
        case "bearer":
            secret = credentials.strip()
        case "basic":
            secret = _password(credentials)
        case _:
            secret = ""
    if not secret:
        raise _unauthorized("no_key", "this server requires an API key; send it as Authorization: Bearer KEY")
    key = keyring.find(secret)
    if key is None:
        raise _unauthorized("wrong_key", "this API key is not known here; ask whoever runs the server for one")
    return Caller(key.name, key.role is Role.ADMIN and scheme.lower() == "bearer")


def may_administer(request: Request) -> None:
    """A dependency of routes that change what is served.

    Raises ProblemError 403.
    """
    check_may_administer(getattr(request.state, "caller", None), service_of(request).settings)


def check_may_administer(caller: Caller | None, settings: ServeSettings) -> None:
    """Admins may. Without keys, and so without a caller, everybody may if the settings allow it.

    Raises ProblemError 403.
    """
    if caller is None and not settings.allow_load:
        detail = "this needs a server that was started with --allow-load, or with --api-keys and an admin's key"
        raise ProblemError(403, "not_allowed", detail)
    if caller is not None and not caller.may_administer:
        detail = "this requires an admin key, sent as Authorization: Bearer KEY; ask whoever runs the server for one"
        raise ProblemError(403, "not_admin", detail)


def _unauthorized(reason: str, detail: str) -> ProblemError:
    return ProblemError(401, reason, detail, headers={"WWW-Authenticate": _CHALLENGES})


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
