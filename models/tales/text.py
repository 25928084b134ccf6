"""The text: real stories, and as many more as a small story model tells."""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

logger = logging.getLogger("stories")

HELD = 100  # the last of the real stories, never trained on
TELLER = "tinyllama_stories260k"
ROWS = 128  # stories told at once
LONGEST = 500  # tokens; the teller's positions end at 512
WARMTH = 0.8  # temperature
LEAST = 0.03  # of the likeliest token's probability; what is below is not said (min-p)
OPENINGS = (0, 1, 2, 3, 4, 6, 8, 12)  # tokens of a real story that a sample begins with
SHORT = 250  # bytes of the shortest story that is kept
FRESH = 0.75  # share of different ones among a story's runs of four words


class Roomy(DynamicLayer):
    """One layer's keys and values in room for LONGEST positions, instead of a copy a step."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            rows, heads, _, size = keys.shape
            self.room = keys.new_empty(2, rows, heads, LONGEST, size)
        end = start + keys.shape[2]
        self.room[0, :, :, start:end] = keys
        self.room[1, :, :, start:end] = values
        self.keys, self.values = self.room[:, :, :, :end]
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Only these sequences from now on."""
        self.room = self.room[:, rows]
        self.keys, self.values = self.room[:, :, :, : self.keys.shape[2]]


def real(data: Path) -> tuple[list[str], list[str]]:
    """The real stories: those to train on and those held out."""
    with gzip.open(data / "text/tinystories_1000.jsonl.gz", "rt") as lines:
        stories = [json.loads(line)["text"].strip() for line in lines]
    return stories[:-HELD], stories[-HELD:]


def told(data: Path, folder: Path, *, size: int, seconds: float, processes: int) -> list[str]:
    """Stories told now or before, until there are `size` bytes or the time is over."""
    folder.mkdir(parents=True, exist_ok=True)
    end, total = time.monotonic() + seconds, sum(f.stat().st_size for f in folder.glob("*.json"))
    seeds = (n for n in range(1 << 30) if not (folder / f"{n}.json").exists())
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        running = set()
        while running or (total < size and time.monotonic() < end):
            while len(running) < processes and total < size and time.monotonic() < end:
                running.add(pool.submit(tell, data, folder, next(seeds)))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            total += sum(future.result().stat().st_size for future in done)
            logger.info("told: %.1f MB", total / 1e6)
    files = sorted(folder.glob("*.json"), key=lambda file: int(file.stem))
    return list(dict.fromkeys(story for file in files for story in json.loads(file.read_text())))


def tell(data: Path, folder: Path, seed: int) -> Path:
    """One batch of stories in a file of its own, those that are whole, long and fresh."""
    torch.set_num_threads(1)
    model, tokenizer = _teller(data / TELLER)
    random = torch.Generator().manual_seed(seed)
    opening = OPENINGS[seed % len(OPENINGS)]
    stories = real(data)[0]
    chosen = torch.randint(len(stories), (ROWS,), generator=random)
    begun = [tokenizer(stories[n]).input_ids[: 1 + opening] for n in chosen]
    ids = list(continued(model, torch.tensor(begun), random))
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    file = folder / f"{seed}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps([text for text in texts if sound(text)]))
    return part.rename(file)


@torch.inference_mode()
def continued(
    model: torch.nn.Module, ids: torch.Tensor, random: torch.Generator
) -> Iterator[list[int]]:
    """Those of the sequences [N, T] that end before LONGEST, without their last token."""
    past = DynamicCache()
    past.layers = [Roomy() for _ in range(model.config.num_hidden_layers)]
    ends = torch.tensor([model.config.bos_token_id, model.config.eos_token_id])
    new = ids
    while len(ids) and ids.shape[1] < LONGEST:
        logits = model(new, past_key_values=past, logits_to_keep=1).logits[:, -1]
        chance = (logits / WARMTH).softmax(1)
        chance[chance < LEAST * chance.amax(1, keepdim=True)] = 0
        new = torch.multinomial(chance, 1, generator=random)
        over = torch.isin(new[:, 0], ends)
        yield from ids[over].tolist()
        ids = torch.cat([ids, new], 1)[~over]
        if over.any():
            new = new[~over]
            for layer in past.layers:
                layer.keep(~over)


def sound(story: str) -> bool:
    """Whether a story is long enough, ends as a sentence and does not go round in circles."""
    return (
        len(story.encode()) >= SHORT
        and story.endswith((".", "!", "?", '"'))
        and story.isascii()
        and fresh(story) >= FRESH
    )


def fresh(story: str) -> float:
    """The share of different ones among a story's runs of four words."""
    words = story.split()
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(runs)) / max(1, len(runs))


@cache
def _teller(folder: Path) -> tuple[torch.nn.Module, AutoTokenizer]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
