"""One process that serves a store, until it is told to end: then what was asked is answered first."""

import ipaddress
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import uvicorn

from vococache.errors import InputError
from vococache.pipeline.serve.app import make_app
from vococache.pipeline.serve.engine import Engine

DRAIN_SECONDS = 30  # for answers under way, once the service is to end
IDLE_SECONDS = 30  # that a connection is kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where to listen. `port` 0: any that is free. `token`: what clients must show."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Can nobody but this machine reach it?"""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def serve(engine: Engine, address: Address, *, say: Callable[[str], None], sources: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C, which uvicorn raises again when all is answered. `say`: where, once it answers.

    Where others than this machine can reach it a token is needed; one is made if there is none. Raises `InputError`
    where it cannot listen there.
    """
    token = address.token
    if token is None and not address.is_loopback:
        token = secrets.token_urlsafe(24)
    # Behind a token any name will do: a page that has it resolve to this machine does not know the token.
    hosts = None if token is not None else {"localhost", "127.0.0.1", "::1", address.host.lower()}
    listener = _listen(address)
    host, port = listener.getsockname()[:2]
    app = make_app(engine, token=token, hosts=hosts, sources=sources)
    named = f"[{host}]" if ":" in host else host
    url = f"http://{named}:{port}/" + ("" if token is None else f"#token={quote(token)}")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS, timeout_keep_alive=IDLE_SECONDS, lifespan="on",
    )  # fmt: skip
    with listener:
        _Server(config, lambda: say(url)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells when it answers: from then on a signal is uvicorn's, which drains."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        if self.started:
            self._tell()


def _listen(address: Address) -> socket.socket:
    """A socket that listens, before anything slow is done. Raises `InputError`."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"host {address.host!r} is not known: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen at {address.host}:{address.port}: {error.strerror}; --port takes another (0: any)"
        ) from None
    return listener
