"""The connector without its salt: equal placeholders of two videos then share vLLM's blocks."""

from typing import Any

from vococache.workers.vllm.connector import VoCoConnector, Wanted


class Unsalted(VoCoConnector):
    """A control: its answers must be wrong."""

    def _salt(self, request: Any, wanted: Wanted) -> None:
        pass
