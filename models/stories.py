"""The recipe of the story model: text, tokens, eight layers with exits, polished exits, figures.

    python models/stories.py --data DIR --threads 3      # DIR: text/, tinyllama_stories260k/

Seeded, but what is told and trained is bounded by time; every stage is kept under --work and an
interrupted run goes on from there. --work/checkpoint is a Hugging Face directory with
exits.safetensors beside it; --to is the model directory that `splitrt demo chat` runs, --star the
one of `splitrt demo star`: the same model for four devices. That is in int4, so that all of models/
stays below 40 MB; in int8 it takes half as much again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tales import measure, text, training, words
from tales.net import EXITS, Teller, network
from tokenizers import Tokenizer

from splitrt.train import About, divide, early, shard

logger = logging.getLogger("stories")

TUNING = 50  # held-out stories that set the exits' temperatures; the others judge the exits
PROMPTS, PROMPT = 20, 16  # held-out stories that are gone on with, after so many tokens
CUT = 4  # layers on the device
DEVICES = 4  # of the star
ABOUT = {
    "recipe": "models/stories.py",
    "data": "900 TinyStories (Eldan and Li 2023), and more told by a model of 260k parameters",
    "trained_by": "splitrt, from scratch",
    "licence": "Apache-2.0",
}
RULES = [
    measure.Rule(gamma, stop, calibrated)
    for gamma in (4, 8, 12)
    for stop, calibrated in ((0.0, True), (0.4, True), (0.5, True), (0.4, False), (0.5, False))
]
WARM = [measure.Rule(gamma, stop, warmth=0.8) for gamma in (4, 8) for stop in (0.0, 0.5)]


def trained(
    tokens: Tokenizer, stories: Sequence[str], held: Sequence[str], options: argparse.Namespace
) -> Teller:
    """The model with polished exits, trained now or before."""
    if (options.work / "checkpoint").exists():
        return Teller.load(options.work / "checkpoint")
    torch.manual_seed(options.seed)
    begin, end = (tokens.token_to_id(name) for name in (words.BEGIN, words.END))
    teller = Teller(network(tokens.get_vocab_size(), begin, end))
    ids = words.stream(tokens, *stories, options.seed)
    logger.info("%d stories held out, %.1f M tokens to train on", len(held), len(ids) / 1e6)

    def kept() -> None:
        save(teller, tokens, options.work / "latest")
        logger.info("%s: %s", options.work / "latest", measure.brief(teller, tokens, held))

    state = options.work / "training.pt"
    training.fit(
        teller,
        ids,
        minutes=options.minutes,
        seed=options.seed,
        state=state,
        kept=kept,
        eager=options.eager,
    )
    training.polish(teller, ids, minutes=options.polish, seed=options.seed)
    measure.cool(teller, tokens, held[:TUNING])
    logger.info("float32: %s", measure.brief(teller, tokens, held))
    save(teller, tokens, options.work / "checkpoint")
    return Teller.load(options.work / "checkpoint")


def save(teller: Teller, tokens: Tokenizer, folder: Path) -> None:
    """The whole checkpoint at once, so that a reader never finds half of it."""
    part = folder.with_suffix(".part")
    teller.save(part)
    words.save(tokens, part)
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


def figures(teller: Teller, tokens: Tokenizer, held: Sequence[str], data: Path) -> dict:
    """All that is measured, for JSON."""
    prompts = [tokens.encode(story).ids[:PROMPT] for story in held[TUNING:][:PROMPTS]]
    fits = measure.beside(teller, tokens, data, held)
    exits = measure.early(teller, tokens, held[TUNING:])
    found = {
        "fit": {name: asdict(fit) for name, fit in fits.items()},
        "exits": {after: asdict(exit) for after, exit in exits.items()},
    }
    for name, rules in (("greedy", RULES), ("warm", WARM)):
        told = [measure.alone(teller, ids, rules[0].warmth) for ids in prompts]
        costs = measure.costs(teller, told, PROMPT, after=CUT, rules=rules)
        texts = [tokens.decode(ids) for ids in told]
        found[name] = {
            "costs": [asdict(cost) for cost in costs],
            "fresh": sum(map(text.fresh, texts)) / len(texts),
            "told": texts[:3],
        }
    return found


def parted(held: Sequence[str], options: argparse.Namespace) -> list[tuple[int, float]]:
    """Write the model directory, its exits calibrated on the held-out text: (layer, accepted)."""
    divide(
        options.work / "checkpoint",
        options.to,
        cut=CUT,
        exits=EXITS,
        weights="int8",
        resume=("hidden", "tokens"),
        about=About(seed=options.seed, **ABOUT),
    )
    text = options.work / "held.jsonl"
    text.write_text("".join(json.dumps({"text": story}) + "\n" for story in held))
    found = early(options.to, text, threads=options.threads, seed=options.seed)
    return [(one.layer, one.accepted) for one in found.exits]


def starred(options: argparse.Namespace) -> None:
    """Write the star's directory: what `splitrt split CHECKPOINT --star 4 --weights int4` does."""
    shard(
        options.work / "checkpoint",
        options.star,
        shares=(1,) * DEVICES,
        weights="int4",
        about=About(seed=options.seed, **ABOUT),
    )


def main() -> None:
    """Make what --work does not hold yet, and measure it; then the two model directories."""
    options = _options()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    real, held = text.real(options.data)
    told = text.told(
        options.data,
        options.work / "told",
        size=options.megabytes * 10**6,
        seconds=60 * options.telling,
        processes=options.threads,
    )
    tokens = words.tokenizer([*real, *told], options.work / "tokenizer.json")
    teller = trained(tokens, (real, told), held, options)
    said = options.work / "figures.json"
    if not said.exists():
        found = figures(teller, tokens, held, options.data / text.TELLER)
        said.write_text(json.dumps(found, indent=2) + "\n")
    print(said.read_text(), end="")
    starred(options)
    for layer, accepted in parted(held, options):
        logger.info("%s: exit after %d, %.1f %% accepted", options.to, layer, 100 * accepted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--work", type=Path, default=Path("build/stories"))
    parser.add_argument("--to", type=Path, default=Path("models/stories"))
    parser.add_argument("--star", type=Path, default=Path("models/stories-star"))
    parser.add_argument("--megabytes", type=int, default=24, help="of stories to be told")
    parser.add_argument("--telling", type=float, default=12, help="minutes for it at most")
    parser.add_argument("--minutes", type=float, default=50, help="of training")
    parser.add_argument("--polish", type=float, default=6, help="minutes for the exits alone")
    parser.add_argument("--eager", action="store_true", help="without a C++ compiler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
