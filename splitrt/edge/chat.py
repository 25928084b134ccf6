"""A language model across the cut: the device drafts, the server has the last word, or neither.

One loop for all modes. spec: drafts of the exit at the cut, verified by the server; the text is
the server's own (Leviathan et al. 2023; LayerSkip, Elhoushi et al. 2024). ask: the same without
drafts. gated: what an exit is sure of stands, unverified (CE-CoLLM, Jin and Wu 2024). edge:
nobody is asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, get_args

import numpy as np

from splitrt.core import draft
from splitrt.core.language import Exit, Language, Resume
from splitrt.core.rows import TOKEN, Rows
from splitrt.core.sample import Sampling, pick
from splitrt.core.spoken import Difference, Mode, Place, Tally, Token, proper
from splitrt.edge.decoder import Decoder
from splitrt.edge.reader import Reader
from splitrt.edge.session import PATIENCE, Reply, Session, Terms
from splitrt.edge.trust import Trust
from splitrt.errors import LinkError, ModelError, PacketError

if TYPE_CHECKING:
    from splitrt.edge.teller import Teller

logger = logging.getLogger(__name__)

THETA = 0.8  # confidence from which an exit's token stands, in `gated` and without a server
MOST = 200  # tokens of an answer


class Chat:
    """A conversation with a language model whose first layers are here.

    cloud: host:port of the servers, with commas; without, mode `edge`.  codec: of the rows that
    are sent, by default the manifest's.  resume: hidden, the device sends rows of the cut; tokens,
    it sends what was said, and the server runs all layers.  drafts: of a round; by default as many
    as pay.  theta: confidence from which an exit's token stands without asking.  longest: positions
    of the conversation.  patience: seconds without a server before the device goes on alone. `mode`
    and `drafts` may be set anew: they hold from the next answer on.

        with Chat("models/stories", cloud="gpu-box:50700") as chat:
            for token in chat.answer(ids, most=100):
                print(token.id, token.where)
            for token in chat.say("Why is the sky blue?"):
                print(token.text, end="")
            print(chat.tally.requests_per_token)

    ModelError for a directory or options that do not fit; ModelMismatch if the server holds another
    model; Refused if it never let this device in. A server that is lost is no error: the answer
    goes on here, with tokens `where="edge"`. Once a server is back that text is verified, and
    `difference` says where it would have gone on otherwise; the conversation keeps what it said.
    """

    def __init__(
        self,
        folder: str | Path,
        cloud: str | None = None,
        *,
        mode: Mode = "spec",
        sampling: Sampling = Sampling(),
        codec: str | None = None,
        resume: Resume = "hidden",
        drafts: int | None = None,
        theta: float = THETA,
        longest: int | None = None,
        patience: float = PATIENCE,
        threads: int = 1,
        trust: Trust = Trust(),
    ) -> None:
        self.manifest = manifest = Language.load(folder)
        _proved(manifest, cloud, mode, resume, drafts)
        self._mode, self.drafts, self.theta = mode, drafts, theta
        self.longest = min(longest or manifest.longest, manifest.longest)
        self.folder, self.codec, self.resume = Path(folder), codec or manifest.codec, resume
        self.tally, self.difference = Tally(), None
        self._sampling = sampling
        rows = Rows(self.codec, manifest.shape.hidden)
        terms = Terms(self.codec, resume, self.longest, sampling)
        decoder = Decoder(folder, manifest, threads=threads, longest=self.longest)
        self._session: Session | None = None
        if mode != "edge" and cloud is not None:
            self._session = Session(cloud, manifest, terms, patience=patience, trust=trust)
        take = None if self._session is None else self._session.append
        self._reader = Reader(decoder, manifest, rows, resume, take)
        self._drafting = draft.start(manifest.exits[-1])
        self._spans: list[tuple[int, int]] = []  # positions said while nobody could be asked
        self._away = False
        self._teller: Teller | None = None
        self._cancelled, self._answering = threading.Event(), threading.Lock()
        logger.info("%s", ", ".join(f"{way}: {size} B a token" for way, size in self.cost.items()))

    difference: Difference | None

    @property
    def cost(self) -> dict[Resume, int]:
        """Bytes that a position takes to the server, for each way that this model allows."""
        row = Rows(self.codec, self.manifest.shape.hidden).size
        return {way: TOKEN if way == "tokens" else row for way in self.manifest.resume}

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens of the conversation."""
        return tuple(self._reader.ids)

    @property
    def away(self) -> bool:
        """Whether the last token was said without a server because none was there."""
        return self._away

    @property
    def up(self) -> bool:
        """Whether a server holds the conversation now."""
        return self._session is not None and self._session.up

    @property
    def mode(self) -> Mode:
        """Who has the last word. In `edge` nobody is asked, and what is said then stands."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        cloud = None if self._session is None else self._session.address
        _proved(self.manifest, cloud, mode, self.resume, self.drafts)
        self._mode = mode

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen. Another way holds from the next answer on."""
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        if sampling != self._sampling:
            self._sampling = sampling
            if self._session is not None:
                self._session.renew(sampling)

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session on the server, too."""
        self.cancel()
        if self._session is not None:
            self._session.close()

    def cancel(self) -> None:
        """Stop the answer that is being said; from any thread."""
        self._cancelled.set()
        if self._session is not None:
            self._session.cancel()

    def truncate(self, n: int) -> None:
        """Let the conversation be its first n tokens."""
        self._reader.truncate(n)
        self._spans = [(start, min(stop, n)) for start, stop in self._spans if start < n]
        if self._session is not None:
            self._session.truncate(n)
            self._session.hold(self._spans[0][0] if self._spans else None)

    def rejoin(self) -> None:
        """Verify now, between answers, what was said without a server, if one is back.

        Another answer that is being said does it itself; the conversation stays as it is.
        """
        session = self._session
        if session is None or not (self._away and session.up) or self.mode == "edge":
            return
        if not self._answering.acquire(blocking=False):
            return
        try:
            self._rejoin(session)
        except CancelledError:
            session.hold(self._spans[0][0])
        finally:
            self._answering.release()

    def answer(self, ids: Sequence[int], *, most: int = MOST) -> Generator[Token, None, None]:
        """Go on after these new tokens of the conversation, until a stop, or `most` tokens.

        Whoever stops reading ends the answer with the last token read. PacketError for tokens
        that there are not, none at all, or more than there is room for.
        """
        if not self._answering.acquire(blocking=False):
            raise PacketError("an answer is being said\nhelp: cancel it, or read it to its end")
        try:
            self._cancelled.clear()
            yield from self._answer(ids, most)
        finally:
            self._answering.release()

    def say(self, text: str, *, most: int = MOST) -> Generator[Token, None, None]:
        """Answer to a text in the conversation so far, by the checkpoint's own tokenizer.

        Needs the extra `chat`.
        """
        if self._teller is None:
            from splitrt.edge.teller import Teller
            from splitrt.edge.tokens import Words

            self._teller = Teller(Words(self.folder, self.manifest), self)
        yield from self._teller.ask(text, most=most)

    def _answer(self, ids: Sequence[int], most: int) -> Generator[Token, None, None]:
        vocab = self.manifest.shape.vocab
        proper(ids, len(self._reader.ids), vocab=vocab, longest=self.longest)
        if self._session is not None and not self._away:
            self._session.hold(0 if self.mode == "edge" else None)
        started, before = time.monotonic(), self._sent
        self.tally = Tally()
        self._reader.prompt(ids)
        shown = len(self._reader.ids)
        until = shown + most
        try:
            while shown < until and shown <= self.longest and not self._cancelled.is_set():
                for token in self._round(until - shown):
                    shown += 1
                    seconds, up = time.monotonic() - started, self._sent - before
                    self.tally = self.tally.said(token.where, seconds, up)
                    yield token
                    if token.id in self.manifest.stops:
                        return
        except CancelledError:
            pass
        finally:
            self.tally = replace(
                self.tally, seconds=time.monotonic() - started, up=self._sent - before
            )
            if len(self._reader.ids) > shown or self._cancelled.is_set():
                self.truncate(shown)

    def _round(self, left: int) -> list[Token]:
        """The next tokens, one at least and `left` at most."""
        session = None if self.mode == "edge" else self._session
        if self._away and session is not None and session.up:
            self._rejoin(session)
        if session is None or self._away:
            return [self._alone()]
        if self.mode == "gated" and (token := self._sure(self.theta)) is not None:
            return [token]
        begin = len(self._reader.ids)
        drafts, sure = self._draft(session, left) if self.mode == "spec" else ([], [])
        self._reader.feed()
        try:
            reply = self._ask(session, drafts)
        except LinkError as error:
            if session.barred:
                raise
            self._lost(session, error, begin)
            said = [self._token(token, "edge", begin + i) for i, token in enumerate(drafts)]
            return said or [self._alone()]
        self._learn(session, reply, sure)
        return self._accepted(reply, drafts, begin)

    def _accepted(self, reply: Reply, drafts: Sequence[int], begin: int) -> list[Token]:
        """The drafts that the server agreed with and its own token, on this side, too."""
        kept = drafts[: reply.accepted]
        said = [self._token(token, "draft", begin + place) for place, token in enumerate(kept)]
        self._reader.truncate(begin + len(kept))
        if not (kept and kept[-1] in self.manifest.stops):
            self._reader.add(reply.token)
            said.append(self._token(reply.token, "cloud", begin + len(kept)))
        return said

    def _draft(self, session: Session, left: int) -> tuple[list[int], list[float]]:
        """Tokens of the exit at the cut while they pay, with its confidence in each."""
        begin, drafts, sure = len(self._reader.ids), list[int](), list[float]()
        most = min(left - 1, session.max_drafts, self.longest - begin)
        if self.drafts is not None:
            most = min(most, self.drafts)
        while len(drafts) < most:
            token, confidence = self._choose(*self._reader.logits())
            if not self._worth(session, [*sure, confidence], most):
                break
            drafts.append(token)
            sure.append(confidence)
            self._reader.add(token)
            if token in self.manifest.stops:
                break
        return drafts, sure

    def _worth(self, session: Session, sure: Sequence[float], most: int) -> bool:
        """Whether the last of these is worth drafting."""
        if self.drafts is not None:
            return True
        found = session.estimate
        way = draft.Way(found.rtt, float(np.exp(found.mu)), session.log.size)
        return draft.length(self._drafting, way, sure, most=most) >= len(sure)

    def _ask(self, session: Session, drafts: Sequence[int]) -> Reply:
        pending = session.ask(drafts)
        if self._cancelled.is_set():  # it came before there was a question to cancel
            session.cancel()
        self.tally = self.tally.asked()
        return pending.future.result()

    def _learn(self, session: Session, reply: Reply, sure: Sequence[float]) -> None:
        drafting = self._drafting
        self.tally = self.tally.tried(len(sure), reply.accepted)
        if self._reader.step:
            drafting = draft.stepped(drafting, self._reader.step)
        drafting = draft.answered(drafting, sure, reply.accepted)
        self._drafting = draft.served(
            drafting, rows=reply.rows, batch=reply.batch, verify=reply.verify, queue=reply.queue
        )

    def _sure(self, theta: float) -> Token | None:
        """The token of the first exit that is sure enough of it, if one is; it stands."""
        for exit, logits in self._reader.voices():
            token, confidence = self._choose(exit, logits)
            if confidence >= theta:
                self._reader.add(token)
                return self._token(token, "edge", len(self._reader.ids) - 1)
        return None

    def _alone(self) -> Token:
        """A token that nobody is asked for: of the first exit that is sure, or of the last."""
        token = self._sure(self.theta)
        if token is None:
            chosen, _ = self._choose(*self._reader.logits())
            self._reader.add(chosen)
            token = self._token(chosen, "edge", len(self._reader.ids) - 1)
        if self._away:
            self._said(token.position)
        return token

    def _choose(self, exit: Exit, logits: np.ndarray) -> tuple[int, float]:
        """The token at the next position, and the exit's calibrated confidence in it."""
        token = pick(logits, self._sampling, len(self._reader.ids))
        scaled = logits.astype(np.float64) / exit.temperature
        return token, float(1 / np.exp(scaled - scaled[token]).sum())

    # without a server, and back

    def _lost(self, session: Session, error: LinkError, begin: int) -> None:
        """Go on alone; what is said from `begin` on is to be verified later."""
        if not session.opened and not session.up:
            logger.warning("no server: %s", str(error).splitlines()[0])
        else:
            logger.warning("the server is lost: %s", str(error).splitlines()[0])
        self._away = True
        for position in range(begin, len(self._reader.ids)):
            self._said(position)
        session.hold(self._spans[0][0] if self._spans else begin)

    def _said(self, position: int) -> None:
        if self._spans and self._spans[-1][1] == position:
            self._spans[-1] = (self._spans[-1][0], position + 1)
        else:
            self._spans.append((position, position + 1))

    def _rejoin(self, session: Session) -> None:
        """Verify what was said alone, as far as it agrees; the text stands in any case."""
        self._reader.feed()
        try:
            while self._spans:
                start, stop = self._spans[0]
                start = self._verify(session, start, stop)
                self._spans[:1] = [(start, stop)] if start < stop else []
        except LinkError:
            session.hold(self._spans[0][0])
            return
        session.hold(None)
        self._away = False

    def _verify(self, session: Session, start: int, stop: int) -> int:
        """Ask for the tokens from start on, with what was said as drafts; where to go on."""
        ids = self._reader.ids
        piece = ids[start : start + min(session.max_drafts, stop - 1 - start)]
        pending = session.ask(piece, start + len(piece), keep=True)
        self.tally = self.tally.asked()
        reply = pending.future.result()
        place = start + reply.accepted
        if reply.token != ids[place]:
            self.difference = Difference(place, ids[place], reply.token)
            logger.warning("position %d: the server would have said otherwise", place)
            self._spans = self._spans[:1]
            return stop
        return place + 1

    # small things

    @property
    def _sent(self) -> int:
        return 0 if self._session is None else self._session.sent_bytes

    def _token(self, token: int, where: Place, position: int) -> Token:
        return Token(token, "", where, position)


def _proved(
    manifest: Language, cloud: str | None, mode: Mode, resume: Resume, drafts: int | None
) -> None:
    """ModelError unless the options go together."""
    if mode not in get_args(Mode):
        raise ModelError(f"no mode {mode!r}\nhelp: one of {', '.join(get_args(Mode))}")
    if cloud is None and mode != "edge":
        raise ModelError(f"mode {mode} without a server\nhelp: cloud=, or mode edge")
    if resume not in manifest.resume:
        held = ", ".join(manifest.resume)
        raise ModelError(f"the model was not split for resume {resume}\nhelp: it has {held}")
    if drafts is not None and drafts < 0:
        raise ModelError(f"{drafts} drafts\nhelp: 0 or more; by default as many as pay")
