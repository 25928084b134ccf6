"""Whom the device trusts, and how it says who it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from splitrt.core.tls import BEARER, TOKEN, authorities, loopback, pair
from splitrt.errors import SplitrtError


@dataclass(frozen=True, slots=True)
class Trust:
    """PEM files and a token. Without `ca` the link is not encrypted.

    ca: who may vouch for the server (for public ones often /etc/ssl/certs/ca-certificates.crt).
    cert, key: the device's own, whose one name is URI:splitrt://device/NAME.  token: a secret that
    the server knows; over a link that is not encrypted it goes to this machine only, unless
    insecure_token.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    token: str | None = field(default=None, repr=False)
    insecure_token: bool = False

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise SplitrtError("a certificate without key, or the reverse\nhelp: give both")
        if self.cert is not None and self.ca is None:
            raise SplitrtError("a certificate, and no encryption\nhelp: name the server's ca, too")
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise SplitrtError("the token is empty or not plain ASCII\nhelp: one line of it")

    def channel(
        self, address: str, options: Sequence[tuple[str, int]], *, name: str | None = None
    ) -> grpc.Channel:
        """A fresh channel to host:port. SplitrtError for files that are wrong.

        name: whom the server's certificate must be for, where that is not the address's host.
        """
        self.check(address)
        if self.ca is None:
            return grpc.insecure_channel(address, options)
        own = (None, None) if self.cert is None or self.key is None else pair(self.cert, self.key)
        called = [] if name is None else [("grpc.ssl_target_name_override", name)]
        return grpc.secure_channel(
            address, grpc.ssl_channel_credentials(authorities(self.ca), *own), [*options, *called]
        )

    def check(self, address: str) -> None:
        """SplitrtError if the token would travel where everybody can read it."""
        if self.token is None or self.ca is not None or self.insecure_token or loopback(address):
            return
        raise SplitrtError(
            f"a token for {address} would travel unencrypted\n"
            "help: --tls-ca FILE; or --insecure-tokens inside a tunnel"
        )

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What each call carries."""
        return [] if self.token is None else [(TOKEN, BEARER + self.token)]
