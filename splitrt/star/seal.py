"""Whom the devices of a star let in: certificates both ways, and a secret that never travels."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from splitrt.core.tls import authorities, pair
from splitrt.errors import SplitrtError

SHORTEST = 16  # characters of a secret
PROOF = hashlib.sha256().digest_size  # bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """PEM files and a secret; by default everybody may join, and nothing is encrypted.

    cert, key: this device's own; who is connected to, as the hub is, needs them. Then lines to it
    are encrypted.  ca: who may vouch for others: with it lines from here are encrypted, and who
    comes here must show a certificate of it, so let it sign for this star alone.  secret: all
    devices hold the same; each proves to the other that it does, and it never travels.
    """

    cert: str | Path | None = None
    key: str | Path | None = None
    ca: str | Path | None = None
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise SplitrtError("a certificate without key, or the reverse\nhelp: give both")
        secret = self.secret
        if secret is not None and (len(secret) < SHORTEST or not secret.isascii()):
            raise SplitrtError(
                f"the secret is shorter than {SHORTEST} characters, or not plain ASCII\n"
                "help: `openssl rand -hex 32` makes one"
            )

    @property
    def encrypted(self) -> bool:
        """Whether any line from or to here is."""
        return self.cert is not None or self.ca is not None

    def coming(self) -> ssl.SSLContext | None:
        """For lines that come in; None: not encrypted. SplitrtError for files that are wrong."""
        if self.cert is None or self.key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._own(context)
        if self.ca is not None:
            context.load_verify_locations(cadata=authorities(self.ca).decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def going(self) -> ssl.SSLContext | None:
        """For lines to others; None: not encrypted. SplitrtError for files that are wrong."""
        if self.ca is None:
            if self.cert is not None:
                raise SplitrtError("a certificate, and no encryption\nhelp: name the hub's ca, too")
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authorities(self.ca).decode("ascii"))
        if self.cert is not None:
            self._own(context)
        return context

    def proof(self, who: bytes, *said: bytes) -> bytes:
        """That `who` knows the secret, and what was said, with both sides' random bytes in it."""
        words = b"".join(len(one).to_bytes(4, "little") + one for one in (who, *said))
        return hmac.digest((self.secret or "").encode(), words, "sha256")

    def proves(self, shown: bytes, who: bytes, *said: bytes) -> bool:
        """Whether that is its proof; takes the same time for all that are wrong."""
        return hmac.compare_digest(shown, self.proof(who, *said))

    def _own(self, context: ssl.SSLContext) -> None:
        assert self.cert is not None and self.key is not None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        pair(self.cert, self.key)
        context.load_cert_chain(self.cert, self.key, password=lambda: b"")
