"""RTSP, from GStreamer's server (Debian: gir1.2-gst-rtsp-server-1.0, python3-gi) under the system's Python."""

import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.live import GEOMETRY, check_even, make_ts, number

from vococache.errors import VideoError
from vococache.workers.video.live_process import LiveDecoder

SERVER = textwrap.dedent("""
    import sys
    import gi
    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service="0")
    factory = GstRtspServer.RTSPMediaFactory()
    pay = "rtph264pay name=pay0 pt=96 config-interval=-1"
    factory.set_launch(f"( filesrc location={sys.argv[1]} ! tsdemux ! h264parse ! {pay} )")
    factory.set_shared(False)
    server.get_mount_points().add_factory("/camera", factory)
    if sys.argv[2:]:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic("anna", "hemlich"), token)
        server.set_auth(auth)
        roles = GstRtspServer.RTSPPermissions()
        roles.add_permission_for_role("user", "media.factory.access", True)
        roles.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(roles)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()
""")
PYTHON = "/usr/bin/python3"
FOUND = Path(PYTHON).exists() and not subprocess.call(
    [PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"], stderr=subprocess.DEVNULL
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOUND, reason="there is no RTSP server of GStreamer here")]


@pytest.fixture(params=[False, True], ids=["open", "with a password"])
def camera(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, str]]:
    make_ts(tmp_path / "clip.ts", 60)
    command = [PYTHON, "-c", SERVER, str(tmp_path / "clip.ts"), *(["password"] if request.param else [])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    yield port, "anna:hemlich@" if request.param else ""
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_camera(camera: tuple[int, str]) -> None:
    """Twice, as its stream ends after six seconds: each time all frames from the first keyframe on."""
    port, who = camera
    with LiveDecoder(f"rtsp://{who}127.0.0.1:{port}/camera", 10.0, GEOMETRY) as decoder:
        for _ in range(2):
            found = []
            for frame in decoder.connect():
                found += [] if frame is None else [frame]
                if len(found) == 45:
                    break
            check_even(found)
            assert [number(frame) for frame in found] == list(range(number(found[0]), number(found[0]) + 45))
            assert found[0].begins == "start", "a child of its own"
    if who:
        with LiveDecoder(f"rtsp://anna:forkert@127.0.0.1:{port}/camera", 10.0, GEOMETRY) as decoder:
            with pytest.raises(VideoError) as caught:
                next(frame for frame in decoder.connect() if frame is not None)
            assert "forkert" not in str(caught.value)
