"""A peer on one device: transformers, whole in memory or by accelerate from disk.

python benchmarks/star/whole.py FOLDER --kind transformers|accelerate [--dtype float32|bfloat16]
"""

from __future__ import annotations

import argparse
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from speak import speak
from transformers import AutoModelForCausalLM


class Stream:
    """What `generate` gives tokens to; the prompt comes first."""

    def __init__(self) -> None:
        self.tokens: queue.Queue[int | None] = queue.Queue()
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            self.tokens.put(int(value.reshape(-1)[-1]))
        self._prompt = False

    def end(self) -> None:
        self.tokens.put(None)


def answer(model: Any, ids: list[int], most: int) -> Iterator[int]:
    """Greedy tokens, as `generate` makes them."""
    stream, prompt = Stream(), torch.tensor([ids])
    said = {"max_new_tokens": most, "do_sample": False, "use_cache": True, "streamer": stream}
    said |= {"attention_mask": torch.ones_like(prompt), "pad_token_id": 1}
    thread = threading.Thread(target=model.generate, args=(prompt,), kwargs=said)
    thread.start()
    while (token := stream.tokens.get()) is not None:
        yield token
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["transformers", "accelerate"], required=True)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as spare:
        said: dict[str, Any] = {"dtype": getattr(torch, options.dtype)}
        if options.kind == "accelerate":
            # Layers lie on disk, and each is read when its turn comes; the rest is in memory.
            said["device_map"] = {"model.embed_tokens": "cpu", "model.norm": "cpu"}
            said["device_map"] |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
            said["device_map"] |= {"model.layers": "disk"}
            said["offload_folder"] = spare
        model = AutoModelForCausalLM.from_pretrained(options.folder, **said).eval()
        model.generation_config.eos_token_id = None  # an answer is as long as it was asked for
        speak(lambda ids, most: answer(model, ids, most))


if __name__ == "__main__":
    main()
