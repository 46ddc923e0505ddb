"""Hub ids, resolved without a network against a cache that the test lays; errors are one line."""

import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

import vococache
from vococache.errors import ModelError
from vococache.model import hub
from vococache.model.checkpoints import locate
from vococache.model.saving import save_pretrained
from vococache.storage import open_store
from vococache.workers.answering import AnswerStage
from vococache.workers.compress import store_header

COMMIT, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def cache(kit, tmp_path, monkeypatch):
    """A hub's cache with `org/tiny`: two commits, `main` and a tag, as `huggingface_hub` lays them."""
    root = tmp_path / "hub"
    place = root / "models--org--tiny"
    for commit, seed in ((COMMIT, 0), (OTHER, 1)):
        save_pretrained(kit.model(seed=seed), place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    (place / "refs" / "v2").write_text(OTHER)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return place


@pytest.mark.parametrize(("revision", "commit"), [("", COMMIT), ("@v2", OTHER), (f"@{OTHER}", OTHER)])
def test_a_cached_snapshot_loads_and_names_its_commit(kit, cache, tmp_path, monkeypatch, revision, commit):
    monkeypatch.chdir(tmp_path)
    name = f"org/tiny{revision}"
    model = vococache.load_model(name, device="cpu")
    assert model.name == f"org/tiny@{commit}" == store_header(model).model
    expected = kit.model(seed=int(commit == OTHER))
    assert model.lm_head.weight.equal(expected.lm_head.weight)
    assert vococache.load_model(model.name, device="cpu").name == model.name


def test_a_folder_of_that_name_comes_first(kit, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(kit.model(seed=5), tmp_path / "org" / "tiny")
    assert vococache.load_model("org/tiny", device="cpu").name == "org/tiny"


def test_only_configs_tokenizers_and_safetensors_are_fetched(monkeypatch, cache):
    asked = {}

    def fetched(repo, **options):
        asked.update(options, repo=repo)
        return str(cache / "snapshots" / COMMIT)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    assert hub.fetch("org/tiny@v2")[1] == f"org/tiny@{COMMIT}"
    from fnmatch import fnmatch

    def wanted(name):
        kept = any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        return kept and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])

    assert (asked["repo"], asked["revision"]) == ("org/tiny", "v2")
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja"):
        assert wanted(name), name
    for name in ("modeling.py", "pytorch_model.bin", "training_args.pt", "consolidated.safetensors", "README.md"):
        assert not wanted(name), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/other", r"not in the cache, and the hub is out of reach"),
        ("org/tiny@nonesuch", r"not in the cache, and the hub is out of reach"),
        ("a/b/c", "unknown model 'a/b/c'"),
    ],
)
def test_offline_it_is_one_line(cache, name, message):
    with pytest.raises(ModelError, match=message) as caught:
        vococache.load_model(name)
    assert "\n" not in str(caught.value)


def test_results_name_the_commit(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = vococache.load_model("org/tiny", device="cpu")
    store = open_store(str(tmp_path / "store"), "a", header=store_header(model))
    stage = AnswerStage(store_url=store.url, model="org/tiny", dtype=None, device="cpu", tokens=None, max_new_tokens=1)
    assert stage.describe()["checkpoint"] == store.header.model == f"org/tiny@{COMMIT}"


@pytest.mark.parametrize(
    ("kind", "message"),
    [(GatedRepoError, "gated: accept"), (RepositoryNotFoundError, "no such model"), (RevisionNotFoundError, "'v9'")],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, kind, message):
    def refuse(*args, **options):
        raise kind.__new__(kind, "404 Client Error.\n\nmany lines")  # no answer of a server to build it from

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=message) as caught:
        locate("org/tiny@v9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./tiny", "../tiny", ".cache/tiny"])
def test_a_folder_that_is_not_there_is_no_hub_id(cache, name):
    with pytest.raises(ModelError, match="unknown model"):
        locate(name)


def test_a_repository_without_a_config(cache, tmp_path):
    (cache / "snapshots" / COMMIT / "config.json").unlink()
    with pytest.raises(ModelError, match=r"'org/tiny' on the Hugging Face hub has no config.json"):
        vococache.load_model("org/tiny")


def test_the_environment_says_where_the_cache_is(cache, tmp_path):
    """In a process of its own, as a user has it: HF_HOME and HF_HUB_OFFLINE."""
    home = tmp_path / "home"
    shutil.copytree(cache.parent, home / "hub")
    code = "from vococache.model.hub import fetch; print(fetch('org/tiny')[1])"
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"org/tiny@{COMMIT}"
