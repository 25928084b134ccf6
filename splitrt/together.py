"""`splitrt demo star`: a story told by four devices together, then by one of them alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrt.coloured import Ink
from splitrt.core.shards import Shards
from splitrt.core.spoken import Tally, Token
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Words
from splitrt.errors import ModelError
from splitrt.served import joined
from splitrt.star import EXACT, Figures, Star
from splitrt.story import HOW, MOST, PROMPT

HERE = Path(__file__).parent
STARS = (HERE / "stories-star", HERE.parent / "models" / "stories-star")  # a wheel's, a clone's


@dataclass(frozen=True, slots=True)
class Together:
    """What the demo found. tally: of all devices.  alone: of the hub with all shards.

    same: token by token.  layers: of the model, each with two sums a token.
    """

    name: str
    text: str
    same: bool
    layers: int
    devices: tuple[Figures, ...]
    tally: Tally
    alone: Tally

    @property
    def summary(self) -> str:
        """What the figures say."""
        text = "the same text, token by token" if self.same else "ANOTHER TEXT: this is a fault"
        took, one = each(self.tally), each(self.alone)
        told = f"{len(self.devices)} devices: {took:.1f} ms a token; one alone: {one:.1f} ms"
        return f"{told}, and {text}.\n{self._meaning(took, one)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `splitrt demo star --json` prints."""
        return {
            "prompt": PROMPT,
            "text": self.text,
            "tokens": self.tally.tokens,
            "identical_to_one_device": self.same,
            "ms_per_token": round(each(self.tally), 3),
            "one_device_ms_per_token": round(each(self.alone), 3),
            "devices": [
                {
                    "name": one.name,
                    "shards": list(one.shards),
                    "peak_mb": round(one.peak / 1e6, 1),
                    "compute_ms": round(one.compute, 3),
                    "reduce_ms": round(one.reduce, 3),
                    "wait_ms": round(one.wait, 3),
                }
                for one in self.devices
            ],
        }

    def _meaning(self, took: float, one: float) -> str:
        sums = f"devices meet {2 * self.layers} times a token"
        if took > one:
            return (
                f"A star is no gain here: {sums}, here as processes that share one machine, and "
                "the model is small;\nit is for a model that one device has not the memory or the "
                "speed for."
            )
        return f"Here the star is faster: {sums}, and that costs less than computing alone."


def run(model: Path | None = None, *, ink: Ink | None = None) -> Together:
    """Start the spokes, tell the story, tell it again alone; ink: where it is shown as it comes."""
    folder = shipped() if model is None else model
    manifest = Shards.load(folder)  # before a process is started for it
    words = Words(folder, manifest)
    said, devices, tally = _all(folder, manifest, words, ink)
    with Star(folder, sampling=HOW, drafts=0) as star:
        star.gather(0, 0)
        alone = told(star, words, None)
        same = [one.id for one in said] == [one.id for one in alone]
        text = "".join(one.text for one in said)
        layers = manifest.shape.layers
        return Together(manifest.name, text, same, layers, devices, tally, star.tally)


def _all(
    folder: Path, manifest: Shards, words: Words, ink: Ink | None
) -> tuple[list[Token], tuple[Figures, ...], Tally]:
    """The story by all devices, and what each of them spent."""
    names, news = [one.folder for one in manifest.devices[1:]], logging.getLogger("splitrt.star")
    try:
        star = Star(folder, sampling=HOW, ways=EXACT, drafts=0)
        with star, joined(star.address, names) as ready:
            if ink is not None:
                ink.line(f"hub: this process; {', '.join(names)}: processes of their own")
            ready(star)
            said = told(star, words, ink)
            news.setLevel(logging.ERROR)  # that spokes leave now is none
            return said, tuple(star.figures()), star.tally
    finally:
        news.setLevel(logging.NOTSET)


def shipped() -> Path:
    """The star that comes with splitrt."""
    for folder in STARS:
        if (folder / "model.toml").exists():
            return folder
    raise ModelError("the shipped star is missing\nhelp: --model DIR, one made by `split --star`")


def told(star: Star, words: Words, ink: Ink | None) -> list[Token]:
    """The story."""
    said: list[Token] = []
    teller = Teller(words, star)
    turn = teller.turn([{"role": "user", "content": PROMPT}])
    if ink is not None:
        ink.line(f"\n{PROMPT} …")
    for token in teller.say(turn, most=MOST):
        said.append(token)
        if ink is not None:
            ink.token(token)
    if ink is not None:
        ink.line("\n")
    return said


def each(tally: Tally) -> float:
    """Milliseconds a token, from the first one on."""
    return 1000 * (tally.seconds - tally.first) / max(1, tally.tokens - 1)
