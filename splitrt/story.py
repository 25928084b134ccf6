"""`splitrt demo chat`: a story told across the cut, then once more by asking for every token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrt.coloured import Ink, told
from splitrt.core.language import Language
from splitrt.core.sample import Sampling
from splitrt.core.spoken import Mode, Tally, Token
from splitrt.edge.chat import Chat
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Words
from splitrt.errors import ModelError
from splitrt.served import served

HERE = Path(__file__).parent
STORIES = (HERE / "stories", HERE.parent / "models" / "stories")  # a wheel's, a clone's
PROMPT = "Once upon a time"
MOST = 120  # tokens
DRAFTS = 8  # of a round: no link here is slow enough for `spec` to find that many worth it
HOW = Sampling(temperature=0.6, seed=3)  # the best token always would go round in circles


@dataclass(frozen=True, slots=True)
class Story:
    """What the demo found. tally: of `spec`.  asked: of always asking.  same: token by token."""

    prompt: str
    text: str
    same: bool
    tally: Tally
    asked: Tally

    @property
    def summary(self) -> str:
        """What the figures say."""
        by_hand = "the same text, token by token" if self.same else "ANOTHER TEXT: this is a fault"
        return (
            f"spec: {told(self.tally)}\n"
            f"ask:  {told(self.asked)}\n"
            f"Asking the server for every token gives {by_hand}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The object that `splitrt demo chat --json` prints."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "identical_to_always_ask": self.same,
            **self.tally.as_dict(),
            "always_ask": self.asked.as_dict(),
        }


def run(model: Path | None = None, *, ink: Ink | None = None) -> Story:
    """Start a server, tell the story twice; ink: where it is shown as it comes."""
    folder = shipped() if model is None else model
    Language.load(folder)  # before a process is started for it
    with served(folder) as address:
        words = Words(folder)  # while the server loads
        there = address()
        if ink is not None:
            ink.line(f"server: {there}, a process of its own; device: this one")
            ink.legend()
            ink.line("")
        said, tally = _told(folder, there, words, "spec", ink)
        asked, other = _told(folder, there, words, "ask", None)
    same = [token.id for token in said] == [token.id for token in asked]
    return Story(PROMPT, "".join(token.text for token in said), same, tally, other)


def shipped() -> Path:
    """The language model that comes with splitrt."""
    for folder in STORIES:
        if (folder / "model.toml").exists():
            return folder
    raise ModelError("the shipped stories are missing\nhelp: --model DIR, one made by `split`")


def _told(
    folder: Path, cloud: str, words: Words, mode: Mode, ink: Ink | None
) -> tuple[list[Token], Tally]:
    """The story by one mode, always with the same choice of tokens."""
    said: list[Token] = []
    with Chat(folder, cloud, mode=mode, sampling=HOW, drafts=DRAFTS) as chat:
        teller = Teller(words, chat)
        turn = teller.turn([{"role": "user", "content": PROMPT}])
        if ink is not None:
            ink.line(f"{PROMPT} …")
        for token in teller.say(turn, most=MOST):
            said.append(token)
            if ink is not None:
                ink.token(token)
        if ink is not None:
            ink.line("\n")
        return said, chat.tally
