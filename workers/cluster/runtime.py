"""Ray itself: started on this machine, or a cluster joined; and stopped."""

import os
import resource
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

from vococache.errors import InputError, WorkersLostError

# What a local Ray may keep in flight; decoders wait while it is full, so memory does not grow with a video.
OBJECT_STORE_BYTES = 256 << 20

MIN_OPEN_FILES = 256

_STARTER = ThreadPoolExecutor(1, thread_name_prefix="ray-init")

_TOKEN = secrets.token_hex(32)  # lets this process alone into its local Ray; Ray remembers the first that it sees

_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def start_ray(address: str | None) -> bool:
    """Connect to a cluster, or start a local Ray without dashboard. True if it is ours to shut down."""
    if ray.is_initialized():
        return False
    os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ})
    if address is not None:
        _check_reachable(address)
    elif not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN  # or Ray would write one to the home directory, where there may be none
    _check_open_files()
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        with _silent_stderr(), nullcontext() if address else _on_loopback():
            _init_ray(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises bare ones too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "AF_UNIX path length" in reason:
            reason += "; set RAY_TMPDIR to a folder of a short path, such as /tmp"
        if address is None:
            raise WorkersLostError(f"Ray does not start on this machine: {reason}") from None
        if _lacks_token(error):
            raise InputError(
                f"the Ray cluster at {address!r} expects its token, found none or another here: set RAY_AUTH_TOKEN to"
                f" it (RAY_AUTH_TOKEN_PATH for a file), see docs/cluster.md"
            ) from None
        raise InputError(f"no Ray cluster at {address!r}: {reason}") from None
    return True


def stop_ray() -> None:
    """Stop the local Ray, or leave the cluster."""
    ray.shutdown()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # of which Ray leaves the native half undone
    if os.environ.get("RAY_AUTH_TOKEN") == _TOKEN:
        del os.environ["RAY_AUTH_TOKEN"]
        os.environ.pop("RAY_AUTH_MODE", None)  # Ray has set it


def _lacks_token(error: BaseException | None) -> bool:
    """Did a cluster turn us away? Where Ray says so, deep within, depends on how far it came."""
    while error is not None:
        if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_open_files() -> None:
    """Refuse a limit on open files with which Ray's native part would end this process, without a word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
        raise WorkersLostError(
            f"Ray cannot start with {hard} open files: expected a limit (`ulimit -n`) of {MIN_OPEN_FILES}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, hard))


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try it for many minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto" and the like: found out at once
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster at {address!r}: {error.strerror or error}") from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray started within listens on loopback alone; by default on every address, for nodes that a local Ray never has.

    Its own way to that is meant for other systems, and read when it is imported: hence the constant too.
    """
    was = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def _init_ray(**options: Any) -> None:
    """`ray.init`, undisturbed by Ctrl-C and SIGTERM, which come after it.

    Either would leave Ray half made, and Ray answers SIGTERM with a native trace and an abort. So it starts in a thread
    that stays (its processes end with the thread that made them), where it cannot set Python's handlers, and what its
    native part sets is put back at once.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread() or None in handlers.values():
        ray.init(**options)
        return
    received: list[int] = []
    started = _STARTER.submit(ray.init, **options)
    while True:
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: received.append(number))
        if wait([started], timeout=0.005).done:
            break
    for number in handlers:
        signal.signal(number, handlers[number])
    if received:
        stop_ray()
        signal.raise_signal(received[0])
    started.result()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's native part announces its log level on file descriptor 2, whatever that level is."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (`os.dup2` wants a descriptor, not a path)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
