"""Text to tokens and back: the checkpoint's own tokenizer.json and chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from splitrt.core.language import CHAT, TOKENIZER, Language
from splitrt.core.manifest import Filed, verified
from splitrt.core.shards import Shards, is_star
from splitrt.edge.template import Message, Template
from splitrt.errors import ModelError, PacketError

LARGEST = 1 << 28  # bytes of a tokenizer.json
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is one byte, where a character has none
LOST = "\ufffd"  # what stands for bytes that are no character, or not yet
CONTEXT = 8  # tokens before an answer that decide whether it begins with a space


@dataclass(frozen=True, slots=True)
class Turn:
    """What a session is given next.

    ids: what it does not hold yet.  whole: all that it then holds.  text: the same, as rendered.
    anew: it cannot go on, so ids are all of them, for a fresh session.
    """

    ids: list[int]
    whole: list[int]
    text: str
    anew: bool = True


class Words:
    """The words of a language model's directory, or of a star's, where they lie with the hub.

    words = Words("models/stories")
    ids = words.prompt([{"role": "user", "content": "Tell me a story."}])
    """

    def __init__(self, folder: str | Path, manifest: Language | Shards | None = None) -> None:
        told = manifest or (Shards.load(folder) if is_star(folder) else Language.load(folder))
        folder, files = _place(folder, told)
        raw = verified(folder, files, TOKENIZER, largest=LARGEST).read_bytes()
        self.tokenizer = _loaded(raw, folder)
        self.name, self.stops = told.name, frozenset(told.stops)
        self._begin, self._end = told.begins, next(iter(told.stops), None)
        front = self.tokenizer.encode("").ids
        self._front = front[:1] if front[:1] == [told.begins] else []
        special = self.tokenizer.get_added_tokens_decoder()
        self._silent = frozenset(id for id, token in special.items() if token.special)
        self._bytes = self._of_bytes(raw)
        self._template = self._chat(folder, files)

    def ids(self, text: str, *, begin: bool = True) -> list[int]:
        """The tokens of a text. begin: with the token that begins texts, if the checkpoint's do."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PacketError(f"the text is no Unicode: {error.reason}") from error
        found = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._front, *found] if begin else found

    def rendered(self, messages: Sequence[Message]) -> str:
        """A conversation as the model reads it: by its template, or else as plain lines."""
        if self._template is not None:
            return self._template(messages)
        text = ""
        for message in messages:
            apart = "\n" if text and message["role"] != "assistant" else ""
            text += apart + message["content"]
        return text

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the next answer begins."""
        return self.ids(self.rendered(messages), begin=self._template is None)

    def turn(
        self,
        told: str | Sequence[Message],
        before: Turn | None = None,
        answer: Sequence[int] = (),
    ) -> Turn:
        """The next turn of a conversation (or of a plain text) in the session that holds `before`.

        answer: the tokens that the session said after that, the one that ended it included. The
        session goes on if the text does: its tokens stay as they were chosen, though the text
        might be spelt otherwise.
        """
        plain = isinstance(told, str) or self._template is None
        text = told if isinstance(told, str) else self.rendered(told)
        whole = self.ids(text, begin=plain)
        if not whole and self._begin is not None:
            whole = [self._begin]
        if not whole:
            raise PacketError("nothing was said\nhelp: give a text")
        if before is not None:
            more = self._more(text, whole, before, list(answer))
            if more:
                return Turn(more, [*before.whole, *answer, *more], text, anew=False)
        return Turn(whole, whole, text)

    def stream(self, before: Sequence[int] = ()) -> Speech:
        """What turns an answer's tokens into text as they come. before: what they follow."""
        return Speech(self.tokenizer, self._silent, self._bytes, before)

    def text(self, ids: Sequence[int], before: Sequence[int] = ()) -> str:
        """The text of tokens that follow others."""
        speech = self.stream(before)
        return "".join([*map(speech.push, ids), speech.end()])

    def _more(self, text: str, whole: list[int], before: Turn, answer: list[int]) -> list[int]:
        """The tokens after what is held; none if the text is another."""
        held = [*before.whole, *answer]
        if whole[: len(held)] == held:
            return whole[len(held) :]
        said = before.text + self.text(answer, before.whole)
        if not text.startswith(said):
            return []
        rest, last = text[len(said) :], None
        if answer and answer[-1] in self.stops:
            last = self.tokenizer.id_to_token(answer[-1])
            if last is None or not rest.startswith(last):
                return []  # the session holds an end that the text has not
            rest = rest[len(last) :]
        return self._after(rest, last)

    def _after(self, text: str, last: str | None) -> list[int]:
        """The tokens of a text that does not begin one: a tokenizer may add a space to those."""
        if not text:
            return []
        anchor = last or next(
            (token for id in sorted(self._silent) if (token := self.tokenizer.id_to_token(id))), ""
        )
        ids = self.ids(anchor + text, begin=False)
        if anchor and ids and ids[0] == self.tokenizer.token_to_id(anchor):
            return ids[1:]
        return self.ids(text, begin=False)

    def _of_bytes(self, raw: bytes) -> frozenset[int]:
        if "ByteFallback" not in json.dumps(json.loads(raw).get("decoder")):
            return frozenset()
        vocab = self.tokenizer.get_vocab()
        return frozenset(id for token, id in vocab.items() if BYTE.fullmatch(token))

    def _chat(self, folder: Path, files: Filed) -> Template | None:
        if CHAT not in files.files:
            return None
        source = verified(folder, files, CHAT, largest=1 << 20).read_text("utf-8")
        begin, end = (
            "" if id is None else self.tokenizer.id_to_token(id) or ""
            for id in (self._begin, self._end)
        )
        return Template(source, begin=begin, end=end)


class Speech:
    """An answer's tokens to text: what all of them at once would give, in pieces.

    Held back: a character whose bytes have not all come.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        silent: frozenset[int],
        single: frozenset[int],
        before: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._silent, self._single = tokenizer, silent, single
        self._ids = self._context(before)
        self._told = len(self._ids)  # of _ids: their text was given
        self._open = False  # the last token that shows is one byte: a run of them decodes as one

    def push(self, id: int) -> str:
        """What a token adds; empty while a character is not complete."""
        self._ids.append(id)
        if id not in self._silent and self._tokenizer.id_to_token(id) is not None:
            self._open = id in self._single
        if self._open:
            return ""
        text = self._new()
        if not text or text.endswith(LOST):
            return ""
        self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        return text

    def end(self) -> str:
        """What was held back, though it never became a character."""
        text = self._new()
        self._told = len(self._ids)
        return text

    def _new(self) -> str:
        """The text of what was not given yet, in the context of what was."""
        told, text = self._text(self._ids[: self._told]), self._text(self._ids)
        if text.startswith(told):
            return text[len(told) :]
        return self._text(self._ids[self._told :])  # a byte that spoils the last of the context

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True) if ids else ""

    def _context(self, before: Sequence[int]) -> list[int]:
        """The last tokens before that show something, so that what follows is no beginning."""
        size = CONTEXT
        while size < len(before) and not self._text(before[-size:]).strip(LOST + " "):
            size *= 8
        return list(before[-size:])


def _place(folder: str | Path, told: Language | Shards) -> tuple[Path, Filed]:
    """The folder in which the words lie, and what knows their hashes."""
    if isinstance(told, Shards):
        return Path(folder) / told.devices[0].folder, told.devices[0]
    return Path(folder), told


def _loaded(raw: bytes, folder: str | Path) -> Tokenizer:
    try:
        found = Tokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers has no error of its own
        raise ModelError(
            f"{folder}/{TOKENIZER} is none that `tokenizers` reads: {error}\n"
            "help: a newer `tokenizers`, or the checkpoint's own file"
        ) from error
    found.no_truncation()
    found.no_padding()
    return found
