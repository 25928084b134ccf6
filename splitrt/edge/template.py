"""A checkpoint's chat template, as Hugging Face renders it: Jinja in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from splitrt.errors import ModelError, PacketError

Message = Mapping[str, str]  # role, content


class Template:
    """A conversation becomes text by the checkpoint's chat.jinja.

    The template comes with the model: it can spend time, but it reaches nothing outside itself.
    """

    def __init__(self, source: str, *, begin: str = "", end: str = "") -> None:
        self._words = {"bos_token": begin, "eos_token": end}
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        sandbox.filters["tojson"] = _json
        sandbox.globals.update(
            raise_exception=_refuse, strftime_now=_now, namespace=_Namespace, dict=_Dict()
        )
        try:
            self._template = sandbox.from_string(source)
        except TemplateError as error:
            raise ModelError(
                f"chat.jinja: {error}\nhelp: it should render in transformers, too"
            ) from error

    def __call__(self, messages: Sequence[Message]) -> str:
        """The conversation, up to where the next answer begins. PacketError if it is refused."""
        plain = [dict(message) for message in messages]
        try:
            return self._template.render(
                messages=plain, add_generation_prompt=True, tools=None, **self._words
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise PacketError(
                f"the chat template refuses these messages: {error}\n"
                "help: most want user and assistant in turn, and a system message first or none"
            ) from error


class _Dict:
    """`dict` of a template: makes one, and has no attributes to climb out by."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)


class _Namespace(Namespace):
    """`namespace` of a template, without names that reach Python's own."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *pairs = args
        values = dict(*pairs, **named)
        for name in values:
            _plain(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain(name)
        super().__setitem__(name, value)


def _plain(name: str) -> None:
    if name.startswith("_"):
        raise TemplateError(f"a namespace cannot hold {name!r}")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would escape what HTML does not like."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
