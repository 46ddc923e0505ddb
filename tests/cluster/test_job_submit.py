"""`ray job submit -- voco ingest ...`, as docs/cluster.md tells it, against a Ray of this test's own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.conftest import FPS, Command, contents, free_ports, wait_for

BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_ray_job_submit(
    command: Callable[..., Command],
    ray_folder: Path,
    videos: Path,
    videos_content: dict[str, bytes],
    tmp_path: Path,
) -> None:
    env = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    names = ("", "dashboard-", "ray-client-server-", "dashboard-agent-listen-", "dashboard-agent-grpc-")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [f"--{name}port={port}" for name, port in ports.items()]
    head = command(
        "ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=300000000",
        "--disable-usage-stats", f"--temp-dir={ray_folder}/ray", *options, env=env,
    )  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-']}"
    environment = os.environ | env | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

    def job_server_answers() -> bool:
        assert head.process.poll() is None, head.finish()
        listing = ["ray", "job", "list", "--address", address]
        return subprocess.run(listing, env=environment, capture_output=True, check=False).returncode == 0

    wait_for(job_server_answers)
    store = tmp_path / "store"
    entrypoint = ["voco", "ingest", str(videos), "--store", str(store), "--fps", str(FPS), "--address", "auto"]
    job = command("ray", "job", "submit", "--address", address, "--", *entrypoint, env=env)
    code, out, err = job.finish(timeout=250)
    assert code == 0, out + err
    assert f"{store}: {len(list(videos.iterdir()))} videos ingested" in out
    assert contents(str(store)) == videos_content
