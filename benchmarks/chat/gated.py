"""What the lossy modes lose: requests a token, and the share of the text that asking always gives.

python benchmarks/chat/gated.py --model models/stories --text held.jsonl --json FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from splitrt import Chat
from splitrt.cloud import Server

PROMPT, NEW = 16, 96  # tokens of a text that are given, and that are then said
WAYS: dict[str, dict[str, Any]] = {
    "spec, 4 drafts": {"mode": "spec", "drafts": 4},
    "spec, 8 drafts": {"mode": "spec", "drafts": 8},
    "spec, 12 drafts": {"mode": "spec", "drafts": 12},
    "spec, by goodput": {"mode": "spec"},
    **{
        f"gated, {theta}": {"mode": "gated", "theta": theta} for theta in (0.5, 0.7, 0.8, 0.9, 0.95)
    },
    "edge": {"mode": "edge"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One way over all texts. same: whole answers that are those of always asking.

    alike: share of their tokens before the first that differs.
    """

    way: str
    requests_per_token: float
    same: int
    texts: int
    alike: float


def answers(
    model: Path, cloud: str, prompts: Sequence[list[int]], **how: Any
) -> tuple[list[list[int]], float]:
    """What is said after each prompt, and requests a token."""
    said, requests = [], 0
    for ids in prompts:
        with Chat(model, cloud, **how) as chat:
            said.append([token.id for token in chat.answer(ids, most=NEW)])
            requests += chat.tally.requests
    return said, requests / sum(map(len, said))


def alike(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


def main() -> None:
    options = _options()
    words = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    lines = options.text.read_text().splitlines()[-options.texts :]
    prompts = [words.encode(json.loads(line)["text"]).ids[:PROMPT] for line in lines]
    rows = []
    with Server(options.model, port=0, threads=1) as server:
        asked, _ = answers(options.model, server.address, prompts, mode="ask")
        for way, how in WAYS.items():
            said, requests = answers(options.model, server.address, prompts, **how)
            pairs = list(zip(said, asked, strict=True))
            share = sum(alike(*pair) for pair in pairs) / sum(map(len, asked))
            same = sum(ours == theirs for ours, theirs in pairs)
            rows.append(Row(way, round(requests, 3), same, len(asked), round(share, 3)))
            print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a language model's directory")
    parser.add_argument("--text", type=Path, required=True, help="a .jsonl with a `text` a line")
    parser.add_argument("--texts", type=int, default=20, help="so many, the last ones")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
