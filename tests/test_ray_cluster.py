"""ray_cluster.yaml is a description that `ray up` of the installed Ray accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


def test_passes_the_checks_of_ray_up(cluster):
    """What `ray up` does with a file before it talks to AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_ray_resolves_it_against_aws(cluster, tmp_path, monkeypatch):
    """The rest of what `ray up` does before the first machine: key pair, subnet, security group; on a fake AWS."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray saves the key pair under ~/.ssh
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        from ray.autoscaler._private.aws import utils
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.util import prepare_config

        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        resolved = bootstrap_aws(prepare_config(cluster))
    for node in resolved["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"] == {"Name": "vococache-node"}
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/")
        assert node["node_config"]["SecurityGroupIds"]


def test_node_types_scale_as_documented(cluster):
    types = cluster["available_node_types"]
    assert set(types) == {"head", "decode", "gpu"}
    assert cluster["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}, "no stage may run beside Ray's control store"
    assert "GPU" not in types["decode"]["resources"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["min_workers"] == 0, "idle GPUs cost money"
    assert types["decode"]["max_workers"] + types["gpu"]["max_workers"] <= cluster["max_workers"]


def test_every_node_installs_the_wheel_with_the_pins(cluster):
    mounts = cluster["file_mounts"]
    assert set(mounts.values()) == {"dist", "constraints.txt"}
    install = next(command for command in cluster["setup_commands"] if "[s3]" in command)
    for remote in mounts:
        assert remote in install
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any(". /etc/profile.d/vococache.sh" in command for command in cluster[key])
    assert "VOCO_STORE=s3://" in cluster["setup_commands"][0]


def test_dashboard_is_not_open_to_the_network(cluster):
    assert any("--dashboard-host=127.0.0.1" in command for command in cluster["head_start_ray_commands"])
