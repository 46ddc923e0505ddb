"""Ingest on Ray's multi-node cluster: the bytes do not depend on it, and what a node cannot see is said."""

import csv
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.clips import make_clip
from tests.cluster.conftest import FPS, Command, RayCluster, contents, wait_for

HERE = "/proc/self/cwd"  # the working directory of whoever looks: the driver and the nodes see different files there
NODE = socket.gethostname()

linux = pytest.mark.skipif(not Path(HERE).exists(), reason="needs /proc")


@linux
@pytest.mark.slow
def test_several_nodes_make_the_bytes_of_one_process(
    cluster: RayCluster,
    voco: Callable[..., Command],
    videos: Path,
    videos_content: dict[str, bytes],
    tmp_path: Path,
) -> None:
    make_clip(tmp_path / "unseen.mp4")
    with (tmp_path / "list.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        rows.writerows([[path] for path in [*videos.iterdir(), f"{HERE}/unseen.mp4"]])
    job = voco("ingest", "list.csv", "--store", "store", "--fps", FPS, "--address", cluster.address, "--json")
    code, out, err = job.finish()
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert set(report["done"]) == {path.stem for path in videos.iterdir()}
    assert report["failed"] == {"unseen": f"no such file on node {NODE}: {HERE}/unseen.mp4"}

    found = contents(str(tmp_path / "store"))
    assert {key: data for key, data in found.items() if "videos/unseen" not in key} == videos_content
    places = cluster.ask("actors")
    assert len(set(places["decode"] + places["compress"])) == 2, "both nodes worked"
    job.wait_until_gone()


@linux
@pytest.mark.slow
def test_a_store_that_only_the_driver_sees_is_refused_even_if_the_nodes_have_an_equal_one(
    cluster: RayCluster, voco: Callable[..., Command], videos: Path, videos_content: dict[str, bytes]
) -> None:
    place = cluster.folder / "store"
    for key, data in videos_content.items():
        if not key.startswith("videos/short"):
            (place / key).parent.mkdir(parents=True, exist_ok=True)
            (place / key).write_bytes(data)
    before = contents(str(place))
    assert_refused(voco, cluster, videos, f"{HERE}/store", "another store is there")
    assert contents(str(place)) == before
    shutil.rmtree(place)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("store", [f"{HERE}/store", "memory://store"])
def test_a_store_that_only_the_driver_sees_is_refused(
    cluster: RayCluster, voco: Callable[..., Command], videos: Path, store: str
) -> None:
    assert_refused(voco, cluster, videos, store, f"no store at {store}")


def assert_refused(voco: Callable[..., Command], cluster: RayCluster, videos: Path, store: str, reason: str) -> None:
    code, out, err = voco("ingest", videos, "--store", store, "--address", cluster.address).finish()
    assert (code, out) == (2, "")
    assert err == (
        f"voco: error: store {store} cannot be used on node {NODE} ({reason}): expected an object store (s3://...) or a"
        " folder that all nodes share\n"
    )


@pytest.mark.slow
def test_an_address_without_cluster_is_one_line(voco: Callable[..., Command], videos: Path) -> None:
    code, out, err = voco("ingest", videos, "--store", "store", "--address", "127.0.0.1:1").finish()
    assert (code, out) == (2, "")
    assert err.startswith("voco: error: no Ray cluster at '127.0.0.1:1'")
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}], ids=["none", "another"])
def test_a_cluster_that_wants_its_token_is_named(
    ray_folder: Path, voco: Callable[..., Command], videos: Path, tmp_path: Path, given: dict[str, str]
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    cluster = RayCluster([1], tmp_path, ray_folder, env=token)
    try:
        arguments = ("ingest", videos / "short_0.mp4", "--store", "store", "--address", cluster.address)
        code, out, err = voco(*arguments, env=given).finish()
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"cluster at '{cluster.address}' expects its token" in err
        assert "RAY_AUTH_TOKEN" in err
        assert voco(*arguments, env=token).finish()[0] == 0
    finally:
        cluster.close()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["decode", "compress"])
def test_a_node_that_dies_costs_time_alone(
    ray_folder: Path,
    voco: Callable[..., Command],
    long_video: Path,
    long_content: dict[str, bytes],
    tmp_path: Path,
    stage: str,
) -> None:
    cluster = RayCluster([0, 1, 1], tmp_path, ray_folder)
    try:
        job = voco("ingest", long_video, "--store", "store", "--fps", FPS, "--address", cluster.address)
        wait_for(lambda: list(tmp_path.glob("store/videos/long/index.*/c.1.*")))
        cluster.ask(f"kill {stage}")
        code, _, err = job.finish(timeout=280)
        assert (code, err) == (0, "")
        assert contents(str(tmp_path / "store")) == long_content
    finally:
        cluster.close()
