"""What the OpenAI-compatible door is asked: read strictly, and refused with words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitrt.core.manifest import first
from splitrt.errors import PacketError

# Passed over: they do not change the text.
IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
# Of OpenAI's, but not offered here: accepted where they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "echo": (False,), "frequency_penalty": (0,),
    "function_call": ("none",), "functions": ([],), "logit_bias": ({},),
    "logprobs": (False, 0), "modalities": (["text"],), "n": (1,),
    "parallel_tool_calls": (False, True), "prediction": (), "presence_penalty": (0,),
    "reasoning_effort": (), "response_format": ({"type": "text"},), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "top_logprobs": (0,), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip
COMPLETION = 16  # tokens, where a completion does not say: as OpenAI's

Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 20)]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
Kind: TypeAlias = Literal["chat", "text"]


class Wrong(PacketError):
    """A request that is refused. status: of HTTP.  param, code: as OpenAI names them."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class Strict(BaseModel):
    """Nothing unknown, no numbers in quotation marks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Text(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Said(Strict):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Text]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As a chat template reads it."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": "".join(part.text for part in self.content), **named}


class Extras(Strict):
    """What a stream ends with."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Wish(Strict):
    """A request for an answer; what is None was left to the server."""

    model: str | None = None
    messages: Annotated[list[Said], Field(min_length=1, max_length=4096)] | None = None
    prompt: Annotated[list[str], Field(min_length=1, max_length=1)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: Extras | None = None

    @property
    def kind(self) -> Kind:
        """A conversation, or a text to go on with."""
        return "text" if self.messages is None else "chat"

    @property
    def told(self) -> str | list[dict[str, str]]:
        """The text, or the messages."""
        if self.messages is not None:
            return [message.plain() for message in self.messages]
        return "".join(self.prompt or ())

    @property
    def most(self) -> int | None:
        """Tokens of the answer."""
        said = self.max_completion_tokens or self.max_tokens
        return COMPLETION if said is None and self.kind == "text" else said

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer, and are not shown."""
        return tuple(self.stop or ())

    @property
    def usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)


def read(raw: bytes, kind: Kind) -> Wish:
    """A request's body; Wrong says which parameter is not as it should be."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Wrong("the body is no JSON\nhelp: one JSON object") from error
    if not isinstance(found, dict):
        raise Wrong("the body is no JSON object\nhelp: {...}")
    wanted = {"chat": "messages", "text": "prompt"}[kind]
    if found.get(wanted) is None:
        raise Wrong(f"{wanted} is missing\nhelp: give it", param=wanted)
    asked = {name: value for name, value in found.items() if _asks(name, value, kind)}
    for name in ("prompt", "stop"):
        if isinstance(asked.get(name), str):
            asked[name] = [asked[name]]
    if kind == "chat" and isinstance(asked["messages"], list):
        asked["messages"] = [_lean(message) for message in asked["messages"]]
    try:
        return Wish.model_validate(asked)
    except ValidationError as error:
        place: Any = error.errors()[0]["loc"]
        raise Wrong(first(error), param=str(place[0]) if place else None) from error


def _asks(name: str, value: Any, kind: Kind) -> bool:
    """Whether a parameter asks for something; Wrong if it is one that is not offered."""
    if name in IGNORED or value is None:
        return False
    if name in NEUTRAL:
        if not any(value == one for one in NEUTRAL[name]):
            told = "one answer at a time" if name == "n" else "leave it out"
            raise Wrong(f"{name} {json.dumps(value)[:80]} is not offered\nhelp: {told}", param=name)
        return False
    known = set(Wish.model_fields) - {"prompt" if kind == "chat" else "messages"}
    if name not in known:
        near = difflib.get_close_matches(name, known | set(NEUTRAL) | IGNORED, 1)
        told = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        raise Wrong(f"no parameter {name[:80]!r}\nhelp: {told}", param=name[:80])
    return True


def _lean(message: Any) -> Any:
    """A message of parts, and without what is empty: clients send whole answers back."""
    if not isinstance(message, Mapping):
        return message
    found = {name: value for name, value in message.items() if value not in (None, [])}
    if isinstance(text := found.get("content"), str):
        found["content"] = [{"type": "text", "text": text}]
    return found
