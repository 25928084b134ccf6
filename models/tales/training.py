"""The training: the last layer and the exits together, then the exits alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from splitrt.train import Muon, fast
from tales.net import Teller

logger = logging.getLogger("stories")

TOKENS = 6144  # a step
LENGTHS = ((0.8, 384), (1.0, 1024))  # until that share of the time, positions a row
WEIGHTS = {2: 0.2, 4: 0.5}  # of an exit's loss beside the last layer's
TEXT = 0.3  # share of the text itself in what an exit is to say; the rest is the last layer's view
RATE, EMBEDDING, DECAY = 0.008, 0.003, 0.1
WARM, FALL = 0.02, 0.3  # shares of the time at which the rate is full, and begins to fall
POLISH = 0.002
EVERY = 500  # seconds between two states on disk


def loss(teller: Teller, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """Cross entropy by layers: to the text for the last, to text and last for the exits."""
    logits = {after: x[:, :-1].flatten(0, 1).float() for after, x in teller(ids).items()}
    targets = ids[:, 1:].flatten()
    last = logits[teller.layers]
    chance = last.detach().softmax(1)
    losses = {teller.layers: functional.cross_entropy(last, targets)}
    for after, weight in WEIGHTS.items():
        guess = logits[after]
        text = guess.gather(1, targets[:, None])[:, 0]
        said = TEXT * text + (1 - TEXT) * (chance * guess).sum(1)
        losses[after] = weight * (guess.logsumexp(1) - said).mean()
    return losses


def fit(
    teller: Teller,
    stream: torch.Tensor,
    *,
    minutes: float,
    seed: int,
    state: Path,
    eager: bool,
    kept: Callable[[], None],
) -> None:
    """Train until so many minutes were spent on it, those before an interruption included.

    `kept` is called whenever the state was written.
    """
    optimisers = _optimisers(teller)
    step, spent, written = 0, 0.0, 0.0
    if state.exists():
        step, spent = _resume(state, teller, optimisers)
        written = spent
    measured = loss if eager else torch.compile(loss, dynamic=False)
    while spent < 60 * minutes:
        start, share = time.monotonic(), spent / 60 / minutes
        ids = windows(stream, length(share), seed, step)
        with fast(ids.device):
            losses = measured(teller, ids)
        sum(losses.values()).backward()
        _step(optimisers, pace(share))
        step, spent = step + 1, spent + time.monotonic() - start
        if step % 50 == 0:
            shown = ", ".join(f"{after}: {x.item():.3f}" for after, x in losses.items())
            logger.info(
                "step %d, %.1f M tokens, %.0f s; %s", step, step * TOKENS / 1e6, spent, shown
            )
        if spent - written > EVERY or spent >= 60 * minutes:
            _write(state, teller, optimisers, step, spent)
            kept()
            written = spent


def windows(stream: torch.Tensor, length: int, seed: int, step: int) -> torch.Tensor:
    """The rows [TOKENS / length, length] of a step: anywhere in the stream."""
    random = torch.Generator().manual_seed((seed << 32) + step)
    starts = torch.randint(len(stream) - length, (TOKENS // length, 1), generator=random)
    return stream[starts + torch.arange(length)].long()


def length(share: float) -> int:
    """Positions a row when that share of the time is spent."""
    return next(positions for until, positions in LENGTHS if share <= until)


def pace(share: float) -> float:
    """The rate over its peak: up, level, down to nothing."""
    return min(max(share, 1e-3) / WARM, 1.0, (1 - share) / (1 - FALL))


def polish(teller: Teller, stream: torch.Tensor, *, minutes: float, seed: int) -> None:
    """The exits alone, on frozen layers: towards the last layer's distribution, by KL."""
    optimiser = torch.optim.Adam(teller.exits.parameters(), POLISH)
    rows, end, step = LENGTHS[0][1], 60 * minutes, 0
    start = time.monotonic()
    while (spent := time.monotonic() - start) < end:
        ids = windows(stream, rows, seed + 1, step)
        with fast(ids.device):
            with torch.no_grad():
                out = teller.model.model(ids, output_hidden_states=True, use_cache=False)
                chance = teller.model.lm_head(out.last_hidden_state).float().softmax(2)
            guesses = [
                teller.model.lm_head(exit(out.hidden_states[int(after)])).float()
                for after, exit in teller.exits.items()
            ]
        gaps = [(x.logsumexp(2) - (chance * x).sum(2)).mean() for x in guesses]
        for group in optimiser.param_groups:
            group["lr"] = POLISH * (1 - spent / end)
        sum(gaps).backward()
        optimiser.step()
        teller.zero_grad()
        step += 1
        if step % 50 == 0:
            logger.info("polish %d: %s", step, ", ".join(f"{x.item():.3f}" for x in gaps))


def _optimisers(teller: Teller) -> list[torch.optim.Optimizer]:
    embedding = teller.model.model.embed_tokens.weight
    rest = [p for p in teller.parameters() if p is not embedding]
    return [
        Muon([{"params": rest, "rate": RATE, "weight_decay": DECAY}]),
        torch.optim.AdamW([{"params": [embedding], "rate": EMBEDDING}], betas=(0.9, 0.95)),
    ]


def _step(optimisers: list[torch.optim.Optimizer], pace: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * pace
        optimiser.step()
        optimiser.zero_grad()


def _write(
    file: Path, teller: Teller, optimisers: list[torch.optim.Optimizer], step: int, spent: float
) -> None:
    states = [optimiser.state_dict() for optimiser in optimisers]
    part = file.with_suffix(".part")
    torch.save({"step": step, "spent": spent, "teller": teller.state_dict(), "by": states}, part)
    part.rename(file)


def _resume(
    file: Path, teller: Teller, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    state = torch.load(file)
    teller.load_state_dict(state["teller"])
    for optimiser, kept in zip(optimisers, state["by"], strict=True):
        optimiser.load_state_dict(kept)
    return state["step"], state["spent"]
