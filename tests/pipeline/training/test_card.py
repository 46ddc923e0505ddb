"""A saved model's card, and its upload to a hub over HTTP."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard, constants

from vococache.errors import InputError
from vococache.pipeline.cli.train import train_group
from vococache.pipeline.training.job import train

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """As much of the hub as takes a commit of small files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, dict[str, bytes]] = {}


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.endswith("/auth-check/write") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(403, {"error": "Forbidden"})
            return
        self._answer(200, {"id": "org/name", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://127.0.0.1:{self.server.server_port}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name, {})
            self._answer(200, {"url": f"{url}/{name}", "id": name, "name": name})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self._answer(200, {"files": files, "commitOid": "0" * 40})
        elif "/commit/" in self.path:
            repository = self.server.repositories["/".join(self.path.split("/")[3:5])]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repository[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                200, {"commitUrl": f"{url}/org/name/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
            )
        else:
            self._answer(200, {})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


CLIPS = {"synthetic": "validation", "count": 8, "asked": 2, "still": True}


def test_a_saved_model_has_a_card_and_says_how_answers_end(settings: Any, tmp_path: Path) -> None:
    run = settings({"max_steps": 1}, evaluation=(CLIPS,), note="For a test.")
    figures = train(run, tmp_path / "run")
    model = tmp_path / "run/model"
    config = json.loads((model / "config.json").read_text())
    card = ModelCard.load(model / "README.md")
    assert card.data.library_name == "vococache"
    assert f"Fingerprint of the compressor: `{config['fingerprint']}`" in card.text
    assert f"| eval_exact_match | {figures['eval_exact_match']:.4g} |" in card.text
    assert "For a test." in card.text
    assert "- synthetic clips, 'validation' (evaluation)" in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert recipe == run.given()
    ends = json.loads((model / "generation_config.json").read_text())
    assert ends["eos_token_id"] == config["prompt"]["stop_ids"]


def test_a_trained_model_is_uploaded(settings: Any, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings({"max_steps": 1}).given()))
    command = ["compress", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(train_group, [*command, "--push-to-hub", "org/name"], catch_exceptions=False)
    assert "uploaded to org/name" in result.stdout
    saved = {file.name: file.read_bytes() for file in (tmp_path / "run/model").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "generation_config.json"} <= saved.keys()
    found = hub.repositories["org/name"]
    found.pop(".gitattributes", None)
    assert found == saved


def test_a_repository_that_cannot_be_written_to_is_told_before_training(
    settings: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings({"max_steps": 1}).given()))
    command = ["compress", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"'org/name' cannot be written to on the Hugging Face hub .*HF_TOKEN"):
        CliRunner().invoke(train_group, [*command, "--push-to-hub", "org/name"], catch_exceptions=False)
    assert not (tmp_path / "run").exists()
