"""Who a device is: the one name in its certificate, the name of its token, else its host."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc

from splitrt.core.tls import BEARER, TOKEN, authorities, loopback, pair, small
from splitrt.errors import Refused, SplitrtError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DEVICE = re.compile(rf"splitrt://device/({NAME.pattern})")
HASHED = re.compile(r"sha256:([0-9a-f]{64})")
SHORTEST = 16  # characters of a token


@dataclass(frozen=True, slots=True)
class Guard:
    """Whom the server lets in; by default everybody, unencrypted.

    cert, key: the server's own, PEM: the link is encrypted.  client_ca: each device must show a
    certificate of it whose only name is URI:splitrt://device/NAME.  tokens: a file of name:token
    lines, of which each device must bring one; name:sha256:HEX keeps the token itself out of the
    file.  Both: both are needed and must give one name.  insecure_tokens: tokens without
    encryption beyond this machine, too.
    """

    cert: str | Path | None = None
    key: str | Path | None = None
    client_ca: str | Path | None = None
    tokens: str | Path | None = None
    insecure_tokens: bool = False

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise SplitrtError("a certificate without key, or the reverse\nhelp: give both")
        if self.client_ca is not None and self.cert is None:
            raise SplitrtError(
                "devices with certificates, and no encryption\nhelp: give the server's own, too"
            )

    def check(self, host: str) -> None:
        """SplitrtError if tokens would travel where everybody can read them."""
        if self.tokens is None or self.cert is not None or self.insecure_tokens or loopback(host):
            return
        raise SplitrtError(
            f"tokens at {host} would travel unencrypted\n"
            "help: --tls-cert and --tls-key; or --insecure-tokens inside a tunnel"
        )

    def credentials(self) -> grpc.ServerCredentials | None:
        """For the port; None: not encrypted."""
        if self.cert is None or self.key is None:
            return None
        roots = None if self.client_ca is None else authorities(self.client_ca)
        return grpc.ssl_server_credentials(
            [pair(self.cert, self.key)], roots, require_client_auth=roots is not None
        )


class Stranger(Refused):
    """A device that is not let in, and with what status."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


class Tokens:
    """The names of a tokens file, each with the sha256 of its token."""

    def __init__(self, path: str | Path) -> None:
        self._names: dict[bytes, str] = {}
        try:
            lines = small(path).decode("ascii").splitlines()
        except UnicodeDecodeError as error:
            raise SplitrtError(f"{path} is not plain ASCII\nhelp: name:token a line") from error
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                self._add(f"{path}, line {number}", *line.strip().partition(":"))
        if not self._names:
            raise SplitrtError(f"{path} names no device\nhelp: name:token a line")

    def _add(self, where: str, name: str, _: str, token: str) -> None:
        if not NAME.fullmatch(name) or len(token) < SHORTEST:
            raise SplitrtError(
                f"{where} is not a name and a token of {SHORTEST} characters or more\n"
                "help: name:token; `openssl rand -hex 32` makes one"
            )
        hashed = HASHED.fullmatch(token)
        digest = bytes.fromhex(hashed[1]) if hashed else _digest(token.encode())
        if digest in self._names:
            raise SplitrtError(
                f"{where} has the token of {self._names[digest]!r}\nhelp: one a device"
            )
        self._names[digest] = name

    def name(self, token: bytes) -> str | None:
        """Whose token that is. Takes the same time for all that are of one length."""
        digest, found = _digest(token), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def identify(context: Any, guard: Guard, tokens: Tokens | None) -> str:
    """The name of the device at the other end of a call; Stranger if it may not come in."""
    names = []
    if guard.client_ca is not None:
        names.append(_certified(context.auth_context()))
    if tokens is not None:
        names.append(_tokened(context.invocation_metadata() or (), tokens))
    if len(set(names)) > 1:
        words = "the certificate and the token are of two devices"
        raise Stranger(grpc.StatusCode.PERMISSION_DENIED, words)
    return names[0] if names else host(context.peer())


def host(peer: str) -> str:
    """The host of what gRPC calls a peer: ipv4:1.2.3.4:567 or ipv6:[::1]:567."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rsplit(":", 1)[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _certified(shown: Mapping[str, Iterable[bytes]]) -> str:
    names = list(shown.get("x509_subject_alternative_name", ()))
    links = list(shown.get("peer_uri", ()))
    device = DEVICE.fullmatch(links[0].decode("ascii", "replace")) if links else None
    if len(names) != 1 or links != names or device is None:
        raise Stranger(
            grpc.StatusCode.PERMISSION_DENIED,
            "the certificate's only name is not URI:splitrt://device/NAME",
        )
    return device[1]


def _tokened(metadata: Iterable[tuple[str, str | bytes]], tokens: Tokens) -> str:
    brought = [value for key, value in metadata if key == TOKEN]
    if len(brought) != 1 or not str(brought[0]).startswith(BEARER):
        raise Stranger(grpc.StatusCode.UNAUTHENTICATED, "a token is needed")
    name = tokens.name(str(brought[0])[len(BEARER) :].encode())
    if name is None:
        raise Stranger(grpc.StatusCode.UNAUTHENTICATED, "the token is not known")
    return name


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
