"""A language model's device part beside transformers on the same layers: ms a token and a prompt.

    python benchmarks/chat/device.py [--json FILE]

One thread each, random weights; (extras: `pip install -e '.[dev]'`). The layers up to the cut, the
last norm and the LM head on both sides; the one model's rounds alternate with the other's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from splitrt import Decoder
from splitrt.train import divide

SIZES = {  # hidden, inner, heads, heads of keys and values; a device's part of about that many
    "60M": (512, 1408, 8, 4),
    "150M": (1024, 2816, 16, 4),
}
VOCAB, CUT, ROOM = 32000, 8, 512
WEIGHTS = ("fp32", "fp16", "int8", "int4")
PROMPT, TOKENS = 128, 24  # tokens of a round: read, then made one by one

Round = tuple[float, list[float], np.ndarray]  # seconds of the prompt, of each token; last logits


def checkpoint(size: str, folder: Path) -> None:
    """Write a random Llama of one layer more than the device runs, and the least of tokenizers."""
    hidden, inner, heads, shared = SIZES[size]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=CUT + 1,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=ROOM,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")


def beside(folder: Path) -> Callable[[list[int]], Round]:
    """transformers' round: the same layers, norm and head, its own cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, num_hidden_layers=CUT, dtype=torch.float32
    ).eval()

    @torch.inference_mode()
    def round(ids: list[int]) -> Round:
        cache = transformers.DynamicCache(config=model.config)
        seconds = []
        for part in (ids[:PROMPT], *([token] for token in ids[PROMPT:])):
            started = time.perf_counter()
            found = model(torch.tensor([part]), past_key_values=cache, logits_to_keep=1)
            seconds.append(time.perf_counter() - started)
        return seconds[0], seconds[1:], found.logits[0, -1].numpy()

    return round


def ours(folder: Path, made: Path, weights: str) -> tuple[Callable[[list[int]], Round], int]:
    """The device part's round, and its bytes on disk."""
    manifest = divide(folder, made, cut=CUT, weights=weights)
    decoder = Decoder(made, manifest, threads=1)

    def round(ids: list[int]) -> Round:
        decoder.truncate(0)
        seconds = []
        for part in (ids[:PROMPT], *([token] for token in ids[PROMPT:])):
            started = time.perf_counter()
            step = decoder.step(part)
            seconds.append(time.perf_counter() - started)
        return seconds[0], seconds[1:], step.logits

    device = [made / name for name in manifest.files if name != "layers.safetensors"]
    return round, sum(path.stat().st_size for path in device)


def measure(size: str, rounds: int) -> list[dict[str, Any]]:
    """A row for transformers and for each kind of weights; and what memory allows in fp32.

    That is the time to read the weights of a token once: all but the embedding.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "checkpoint"
        checkpoint(size, folder)
        runs, bytes_ = {"transformers": beside(folder)}, {"transformers": 0}
        for weights in WEIGHTS:
            runs[weights], bytes_[weights] = ours(folder, Path(work) / weights, weights)
        ids = np.random.default_rng(0).integers(0, VOCAB, PROMPT + TOKENS).tolist()
        for run in runs.values():
            run(ids)
        found: dict[str, list[Round]] = {name: [] for name in runs}
        read = np.ones(bytes_["fp32"] // 4 - VOCAB * SIZES[size][0], np.float32)
        reading = []
        for _ in range(rounds):
            for name, run in runs.items():
                found[name].append(run(ids))
            reading.append(_seconds(lambda: np.dot(read, read)))
    rows = [_row(size, name, found[name], found["transformers"], bytes_[name]) for name in runs]
    return [*rows, {"size": size, "reading_ms": round(1000 * statistics.median(reading), 2)}]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _row(size: str, name: str, rounds: list[Round], base: list[Round], size_bytes: int) -> dict:
    def ms(all_: list[Round], part: int) -> float:
        return 1000 * statistics.median(np.hstack([one[part] for one in all_]).tolist())

    gap = np.abs(rounds[-1][2] - base[-1][2]).max() / np.abs(base[-1][2]).max()
    return {
        "size": size,
        "weights": name,
        "token_ms": round(ms(rounds, 1), 2),
        "prompt_ms": round(ms(rounds, 0), 1),
        "token_times": round(ms(base, 1) / ms(rounds, 1), 2),
        "prompt_times": round(ms(base, 0) / ms(rounds, 0), 2),
        "mb": round(size_bytes / 1e6, 1),
        "logits_off": float(f"{gap:.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for size in args.sizes:
        for row in measure(size, args.rounds):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.json is not None:
        about = {
            "rounds": args.rounds, "prompt": PROMPT, "tokens": TOKENS, "layers": CUT,
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "onnxruntime": onnxruntime.__version__,
        }  # fmt: skip
        args.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
