"""Who may ask what: in front of every route, before any of a request's body is read.

A page of another origin can make a browser send requests here, or have its own name resolve to this machine (DNS
rebinding). So the host must be one that was meant, and a request that a browser marks as another origin's is refused.
"""

import hashlib
import hmac
from collections.abc import Collection
from http.cookies import SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vococache.pipeline.serve.errors import error_response

MAX_BODY = 1 << 20
TOO_LARGE = f"the body is larger than {MAX_BODY:,} bytes"
# What shows nothing of the store: the page itself asks for the token.
PUBLIC = ("/", "/healthz", "/favicon.ico")
PUBLIC_BELOW = "/page/"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware. `token`: what clients must show; None: nothing. `hosts`: names to be asked by; None: any."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Collection[str] | None) -> None:
        self.app = app
        self.token = token
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on with limits and headers."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
            return
        await self.app(scope, counted, with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Why a request is not handed on."""
        host = headers.get("host", "")
        if self.hosts is not None and host_name(host) not in self.hosts:
            return error_response(403, f"host {host[:100]!r} is not served here", "permission_error", "wrong_host")
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        marked = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        # A link from elsewhere to the page itself is no harm: it shows nothing to where it came from.
        followed = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (marked and not followed):
            return error_response(403, "requests of another origin are refused", "permission_error", "cross_origin")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BODY:
            return error_response(413, TOO_LARGE, "invalid_request_error", "content_too_large")
        path = scope["path"]
        if path in PUBLIC or path.startswith(PUBLIC_BELOW) or self._is_allowed(scope, headers):
            return None
        refusal = error_response(401, "expected the service's token", "authentication_error", "invalid_api_key")
        refusal.headers["www-authenticate"] = "Bearer"
        return refusal

    def _is_allowed(self, scope: Scope, headers: Headers) -> bool:
        """Does the request show the token, where one is needed, as a bearer's or in the page's cookie?"""
        if self.token is None:
            return True
        shown = headers.get("authorization", "")
        cookie = Request(scope).cookies.get(cookie_name(self.token), "")
        given = shown[7:] if shown[:7].lower() == "bearer " else cookie
        return hmac.compare_digest(given.encode(), self.token.encode())


def cookie_name(token: str) -> str:
    """The cookie's name: another service's on the same host, which a browser does not tell by its port, has another."""
    return f"voco_{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def session_cookie(token: str) -> str:
    """The `Set-Cookie` that lets the page's pictures and player show the token, which scripts cannot read."""
    key = cookie_name(token)
    cookie = SimpleCookie({key: token})
    for name, value in (("httponly", True), ("samesite", "Strict"), ("path", "/")):
        cookie[key][name] = value
    return cookie[key].OutputString()


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower()
