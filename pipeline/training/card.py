"""The model card of what a run saves, and its repository on the Hugging Face hub."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from vococache.errors import InputError
from vococache.model.files import ADAPTER, read_json
from vococache.model.hub import is_hub_id
from vococache.pipeline.training.settings import TrainSettings

CARD = "README.md"


def write_card(folder: Path, settings: TrainSettings, figures: dict[str, float]) -> None:
    """Write the card of the model in `folder`: metrics, data, recipe, fingerprint."""
    config = read_json(folder / "config.json")
    base = settings.model if is_hub_id(settings.model) and not Path(settings.model).exists() else None
    data = ModelCardData(
        library_name="vococache", pipeline_tag="video-text-to-text", base_model=base, tags=["voco", "kv-cache"]
    )
    adapter = (folder / ADAPTER).is_file()
    use = f"voco convert {folder.name} merged   # the adapter into its base\n" if adapter else ""
    use += f"voco ingest VIDEOS --store caches --model {'merged' if adapter else folder.name}"
    fingerprint = config.get("fingerprint", "told by the merged model's config.json")
    sources = [
        f"- {source.file or f'synthetic clips, {source.synthetic!r}'}{' (evaluation)' if held_out else ''}"
        for held_out, group in enumerate((settings.data, settings.evaluation))
        for source in group
    ]
    metrics = [f"| {name} | {value:.4g} |" for name, value in sorted(figures.items())]
    text = f"""---
{data.to_yaml()}
---

# {"A LoRA adapter for a" if adapter else "A"} VoCo model

It compresses each segment of a video into the keys and values of {config["num_voco_tokens"]} VoCo tokens
([arXiv 2406.12275](https://arxiv.org/abs/2406.12275)).{f" {settings.note}" if settings.note else ""}

```console
{use}
```

## Metrics

{_table(metrics) if metrics else "No evaluation was asked for."}

## Data

{chr(10).join(sources)}

## Recipe

```yaml
{yaml.safe_dump(settings.given(), sort_keys=False).rstrip()}
```

Fingerprint of the compressor: `{fingerprint}`
"""
    (folder / CARD).write_text(text)


def open_repository(name: str) -> None:
    """Make the model repository `name` on the hub, if it is not there: before a training, not after it.

    Raises `InputError` in one line where it cannot be written to.
    """

    def make(api: HfApi) -> None:
        api.create_repo(name, exist_ok=True)  # says nothing where another's is there
        api.auth_check(name, write=True)

    _hub(name, make)


def push(folder: Path, name: str) -> None:
    """Upload a saved model's folder. Raises `InputError`."""
    _hub(name, lambda api: api.upload_folder(repo_id=name, folder_path=folder, commit_message="voco train"))


def _hub(name: str, act: Any) -> None:
    try:
        act(HfApi())
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name!r} cannot be written to on the Hugging Face hub (HF_TOKEN): {reason}") from None


def _table(rows: list[str]) -> str:
    return "\n".join(["| metric | value |", "|---|---|", *rows])
