"""The figures: bits a byte, what the exits keep, how often a server would be asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedTokenizerFast,
)

from splitrt.train import calibrate, calibration_error
from tales.net import Teller

NEW = 96  # tokens that the model goes on with


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a model expects stories."""

    stories: int
    tokens: int
    perplexity: float  # a token
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Early:
    """What an exit is worth on stories."""

    kept: float  # share of positions where its arg-max is the last layer's
    kl: float  # nats from the last layer's distribution
    ece_text: float  # error of its confidence as the chance that the text goes on so
    ece_kept: float  # as the chance that the last layer says the same
    ece_calibrated: float  # the same at its temperature
    temperature: float


@torch.inference_mode()
def fit(nats: Callable[[str], torch.Tensor], stories: Sequence[str]) -> Fit:
    """Perplexity of the stories by the nats of their tokens."""
    each = [nats(story) for story in stories]
    total, tokens = sum(x.sum().item() for x in each), sum(len(x) for x in each)
    size = sum(len(story.encode()) for story in stories)
    return Fit(len(stories), tokens, math.exp(total / tokens), total / math.log(2) / size)


def nats(model: torch.nn.Module, encode: Callable[[str], list[int]], story: str) -> torch.Tensor:
    """Of every token of a story, after the one that begins it."""
    ids = torch.tensor([encode(story)])
    logits = model(ids, use_cache=False).logits[0, :-1]
    return functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")


def beside(teller: Teller, words: Tokenizer, data: Path, stories: Sequence[str]) -> dict[str, Fit]:
    """The model on all stories; it and the 260k model on what this has positions for of each."""
    small = AutoModelForCausalLM.from_pretrained(data, dtype=torch.float32).eval()
    encode = AutoTokenizer.from_pretrained(data)
    begun = [_begun(encode, story, small.config.max_position_embeddings) for story in stories]
    ours = partial(nats, teller.model, lambda story: words.encode(story).ids)
    theirs = partial(nats, small, lambda story: encode(story).input_ids)
    return {
        "stories, whole": fit(ours, stories),
        "stories": fit(ours, begun),
        "stories260k": fit(theirs, begun),
    }


def _begun(encode: PreTrainedTokenizerFast, story: str, most: int) -> str:
    """As much of a story as so many tokens say, without the spaces at its end."""
    found = encode(story, truncation=True, max_length=most - 1, return_offsets_mapping=True)
    return story[: found.offset_mapping[-1][1]].rstrip()


def cool(teller: Teller, words: Tokenizer, stories: Sequence[str]) -> None:
    """Set the exits' temperatures by these stories."""
    guesses, last, _ = _said(teller, words, stories)
    for after, guess in guesses.items():
        teller.exits[str(after)].temperature = calibrate(guess, last.argmax(1)).temperature


def early(teller: Teller, words: Tokenizer, stories: Sequence[str]) -> dict[int, Early]:
    """The exits on the stories."""
    guesses, last, text = _said(teller, words, stories)
    return {
        after: _early(guess, last, text, teller.exits[str(after)].temperature)
        for after, guess in guesses.items()
    }


@torch.no_grad()
def _said(
    teller: Teller, words: Tokenizer, stories: Sequence[str]
) -> tuple[dict[int, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Logits [tokens, vocabulary] of the exits and of the last layer; the text's tokens."""
    encoded = [torch.tensor([words.encode(story).ids]) for story in stories]
    each = [teller(ids) for ids in encoded]
    logits = {after: torch.cat([x[after][0, :-1] for x in each]) for after in each[0]}
    return logits, logits.pop(teller.layers), torch.cat([ids[0, 1:] for ids in encoded])


def _early(
    guess: torch.Tensor, last: torch.Tensor, text: torch.Tensor, temperature: float
) -> Early:
    confidence, answer = guess.softmax(1).max(1)
    calibrated = (guess / temperature).softmax(1).amax(1)
    kept = answer == last.argmax(1)
    gap = functional.kl_div(
        guess.log_softmax(1), last.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return Early(
        kept=kept.float().mean().item(),
        kl=gap.item(),
        ece_text=calibration_error(confidence, answer == text),
        ece_kept=calibration_error(confidence, kept),
        ece_calibrated=calibration_error(calibrated, kept),
        temperature=temperature,
    )


def brief(teller: Teller, words: Tokenizer, stories: Sequence[str]) -> str:
    """Bits a byte and what the exits keep, for a log."""
    whole = fit(partial(nats, teller.model, lambda story: words.encode(story).ids), stories)
    kept = {after: f"{found.kept:.3f}" for after, found in early(teller, words, stories).items()}
    return f"{whole.bits_per_byte:.4f} bits a byte, perplexity {whole.perplexity:.2f}, kept {kept}"


@torch.inference_mode()
def alone(teller: Teller, ids: list[int], warmth: float = 0.0) -> list[int]:
    """A prompt and NEW tokens after it that all layers choose, or fewer if the story ends."""
    end, past, text = teller.model.config.eos_token_id, DynamicCache(), list(ids)
    new = ids
    while len(text) < len(ids) + NEW and text[-1] != end:
        logits = teller.model(torch.tensor([new]), past_key_values=past, logits_to_keep=1).logits
        new = chosen(logits[0], len(text), warmth)
        text += new
    return text


@dataclass(frozen=True, slots=True)
class Draft:
    """One guess of an exit."""

    token: int
    confidence: float
    calibrated: float  # at the exit's temperature


@dataclass(frozen=True, slots=True)
class Rule:
    """When drafting ends: after gamma tokens, or below a confidence; and how words are chosen."""

    gamma: int
    stop: float = 0.0
    calibrated: bool = True
    warmth: float = 0.0  # temperature of the words, 0 for the likeliest ones

    def ends(self, draft: Draft) -> bool:
        return (draft.calibrated if self.calibrated else draft.confidence) < self.stop


@dataclass(frozen=True, slots=True)
class Cost:
    """What speculation costs on some stories."""

    rule: Rule
    new: int  # tokens
    asked: int  # of the server
    a_token: float  # requests
    drafted: int
    same: int  # stories that came out as all layers alone tell them


def costs(
    teller: Teller, told: Sequence[list[int]], prompt: int, *, after: int, rules: Sequence[Rule]
) -> list[Cost]:
    """Speculation on the beginnings of stories that all layers told, by rules of one warmth."""
    (warmth,) = {rule.warmth for rule in rules}
    guess = guesser(teller, after, warmth)
    return [_cost(teller, guess, told, prompt, rule) for rule in rules]


def guesser(teller: Teller, after: int, warmth: float) -> Callable[[tuple[int, ...]], Draft]:
    """What an exit drafts after a text; remembered, since rules share most of it."""

    @cache
    def guess(ids: tuple[int, ...]) -> Draft:
        logits = teller.draft(torch.tensor([ids]), after)
        calibrated = (logits / teller.exits[str(after)].temperature).softmax(1).amax()
        (token,) = chosen(logits, len(ids), warmth)
        return Draft(token, logits.softmax(1).amax().item(), calibrated.item())

    return guess


def chosen(logits: torch.Tensor, place: int, warmth: float) -> list[int]:
    """The words of rows [N, vocabulary] at places from `place` on.

    With warmth they are samples: whoever draws for a place adds the same noise (Gumbel-max).
    """
    if warmth:
        logits = logits / warmth - torch.stack(
            [_noise(place + n, logits.shape[1]) for n in range(len(logits))]
        )
    return logits.argmax(1).tolist()


def _noise(place: int, size: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(place)
    return torch.empty(size).exponential_(generator=random).log()


def _cost(
    teller: Teller,
    guess: Callable[[tuple[int, ...]], Draft],
    told: Sequence[list[int]],
    prompt: int,
    rule: Rule,
) -> Cost:
    runs = [speculate(teller, guess, ids[:prompt], rule) for ids in told]
    texts, asked, drafted = zip(*runs, strict=True)
    new = sum(len(text) - prompt for text in texts)
    same = sum(text == ids for text, ids in zip(texts, told, strict=True))
    return Cost(rule, new, sum(asked), sum(asked) / new, sum(drafted), same)


@torch.inference_mode()
def speculate(
    teller: Teller, guess: Callable[[tuple[int, ...]], Draft], ids: list[int], rule: Rule
) -> tuple[list[int], int, int]:
    """The text, and the counts of requests and drafts. The exit drafts, all layers verify."""
    end, most = teller.model.config.eos_token_id, len(ids) + NEW
    text, asked, drafted = list(ids), 0, 0
    while len(text) < most and text[-1] != end:
        drafts: list[int] = []
        while len(drafts) < min(rule.gamma, most - len(text) - 1):
            draft = guess((*text, *drafts))
            if rule.ends(draft):
                break
            drafts.append(draft.token)
        rows = teller.model(torch.tensor([text + drafts]), logits_to_keep=len(drafts) + 1).logits
        said = chosen(rows[0], len(text), rule.warmth)
        right = [draft == answer for draft, answer in zip(drafts, said, strict=False)]
        new = said[: [*right, False].index(False) + 1]
        text += new[: new.index(end) + 1] if end in new else new
        asked, drafted = asked + 1, drafted + len(drafts)
    return text, asked, drafted
