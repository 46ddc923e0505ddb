"""What stored entries cannot be laid into is refused in one line, before an engine answers from it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vococache.errors import InputError, ModelError, StoreMismatchError
from vococache.model import load_model
from vococache.model.parts import PartConfig
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.storage import open_store
from vococache.workers.compress import store_header
from vococache.workers.reason import ReasonStage
from vococache.workers.vllm.checks import check_engine, check_overrides, check_writes
from vococache.workers.vllm.decoder import Decoder, export_decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("exported") / "decoder"
    export_decoder(load_model("synthetic", device="cpu"), folder)
    return Decoder.at(folder)


def engine(decoder: Decoder, **changes: Any) -> Any:
    """As vLLM's configuration, as far as it is looked at."""
    text = decoder.config.text
    sizes = {name: changes.pop(name) for name in list(changes) if hasattr(text, name)}
    settings = {
        "use_mla": False, "max_model_len": 1024, "decode_context_parallel_size": 1, "prefill_context_parallel_size": 1,
        "tensor_parallel_size": 1, "speculative_config": None, "kv_load_failure_policy": "fail",
    } | changes  # fmt: skip
    parts = SimpleNamespace(**settings)
    parts.hf_text_config = PartConfig(**text.to_dict() | sizes)
    return SimpleNamespace(
        model_config=parts, parallel_config=parts, kv_transfer_config=parts, speculative_config=parts.speculative_config
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_mla": True}, "MLA"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        ({"speculative_config": object()}, "draft"),
        ({"kv_load_failure_policy": "recompute"}, "'fail'"),
        ({"num_hidden_layers": 3}, "layers"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"head_dim": 16}, "dimension"),
        ({"vocab_size": 2}, "vocabulary"),
        ({"max_model_len": 8192}, "max-model-len"),
        ({"tensor_parallel_size": 4}, "ranks"),
    ],
)
def test_engines_that_cannot_read_a_store_are_refused(decoder: Decoder, changes: dict[str, Any], told: str) -> None:
    header = store_header(load_model("synthetic", device="cpu"))
    check_engine(engine(decoder), header, decoder)
    with pytest.raises(InputError, match=told):
        check_engine(engine(decoder, **changes), header, decoder)


class Base:
    def start(self, context: object, **kwargs: object) -> None: ...


class Same(Base):
    def start(self, context: object, **kwargs: object) -> None: ...

    def _own(self) -> None: ...


class Renamed(Base):
    def start(self, forward: object, **kwargs: object) -> None: ...


class Gone(Base):
    def stop(self) -> None: ...


def test_a_base_class_with_other_methods_is_refused() -> None:
    check_overrides(Same, Base)
    for own in (Renamed, Gone):
        with pytest.raises(InputError, match="connectors are others"):
            check_overrides(own, Base)


class Writes:
    def do_kv_cache_update(
        self, layer: object, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None: ...


class WritesLatent:
    def do_kv_cache_update(self, kv_c_normed: torch.Tensor, k_pe: torch.Tensor) -> None: ...


def test_layers_that_write_in_another_way_are_refused() -> None:
    header = store_header(load_model("synthetic", device="cpu"))
    good, latent, none = (SimpleNamespace(impl=impl) for impl in (Writes(), WritesLatent(), None))
    check_writes({0: good, header.layers - 1: good}, header)
    for layers in ({}, {header.layers: good}, {0: good, 1: latent}, {0: none}):
        with pytest.raises(InputError):
            check_writes(layers, header)


def test_a_decoder_reads_the_stores_of_its_compressor_alone(decoder: Decoder, tmp_path: Any) -> None:
    model = load_model("synthetic", device="cpu", num_voco_tokens=2)
    ReasonStage(decoder.shapes(), open_store(tmp_path / "own", "a", header=store_header(model)))
    other = random_model(small_config(byte_tokenizer()), seed=0)
    with pytest.raises(StoreMismatchError, match="another compressor"):
        ReasonStage(decoder.shapes(), open_store(tmp_path / "other", "a", header=store_header(other)))
    with pytest.raises(ModelError, match="voco export-decoder"):
        Decoder.at(tmp_path)
