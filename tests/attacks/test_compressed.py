"""Compressed payloads that claim, hide or break something: zstd, and the entropy coder."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from splitrt.core.codec import codecs
from splitrt.core.manifest import Manifest
from tests.attacks.frames import deflated, elements, request, zstd
from tests.attacks.unharmed import discreet, refused, refused_between_good_ones, told, unharmed

DICE = random.Random(11)
CLAIMS = b"\1\xe0"  # compressed; a frame that states its size in eight bytes, one segment


def claiming(size: int) -> Callable[[Manifest], bytes]:
    """A frame that states that size and holds a few zeros."""
    return lambda m: request(m, CLAIMS + struct.pack("<Q", size) + bytes(9))


def blown(size: int, **settings: object) -> Callable[[Manifest], bytes]:
    """Zeros of that size, as far as they fit the largest payload."""
    return lambda m: request(m, zstd(bytes(size), **settings)[: elements(m) + 1])


def longest(manifest: Manifest) -> int:
    """Bytes of the longest q4 payload: twelve bits a code, and one."""
    return elements(manifest) * 12 // 8 + 1


def whole(manifest: Manifest, **settings: object) -> bytes:
    """A payload of the right length without the model's dictionary."""
    return zstd(bytes(elements(manifest)), **settings)


ZSTD: dict[str, Callable[[Manifest], bytes]] = {
    "no body": lambda m: request(m, b"\1"),
    "noise": lambda m: request(m, b"\1" + DICE.randbytes(DICE.randrange(1, elements(m)))),
    "bomb": blown(50_000_000),
    "bomb without a size": blown(50_000_000, write_content_size=False),
    "one byte more": lambda m: request(m, zstd(bytes(elements(m) + 1))),
    "one byte less": lambda m: request(m, zstd(bytes(elements(m) - 1))),
    "right, but without a size": lambda m: request(m, whole(m, write_content_size=False)),
    "claims 4 GiB": claiming(2**32),
    "claims 1 TiB": claiming(2**40),
    "claims 2^63 - 1": claiming(2**63 - 1),
    "claims 2^64 - 1": claiming(2**64 - 1),
    "claims 2^64 - 2": claiming(2**64 - 2),
    "claims nothing": claiming(0),
    "claims the right size": lambda m: claiming(elements(m))(m),
    "window of 2 GiB": lambda m: request(m, b"\1\xc0\xa8" + struct.pack("<Q", elements(m)) + b"\1"),
    "cut": lambda m: request(m, whole(m)[:-1]),
    "trailing garbage": lambda m: request(m, whole(m) + b"more"),
    "second frame": lambda m: request(m, whole(m) + whole(m)[1:]),
    "second frame with magic": lambda m: request(
        m, whole(m) + zstd(b"x", b"", format=zstandard.FORMAT_ZSTD1)
    ),
    "skippable frame first": lambda m: request(
        m, b"\1" + struct.pack("<II", 0x184D2A50, 4) + b"skip" + whole(m)[1:]
    ),
    "skippable frame last": lambda m: request(
        m, whole(m) + struct.pack("<II", 0x184D2A5F, 4) + b"skip"
    ),
    "with magic": lambda m: request(m, whole(m, format=zstandard.FORMAT_ZSTD1)),
    "unknown dictionary": lambda m: request(
        m, b"\1\x23" + struct.pack("<IH", 0xDEAD, elements(m) - 256) + bytes(9)
    ),
    "flag 2": lambda m: request(m, b"\2" + bytes(elements(m))),
    "flag 255": lambda m: request(m, b"\xff" + bytes(elements(m))),
    "compressed, says stored": lambda m: request(m, b"\0" + whole(m)[1:]),
    "stored, says compressed": lambda m: request(m, b"\1" + bytes(elements(m))),
    "deflate": lambda m: request(m, b"\1" + deflated(bytes(elements(m)))),
    "gzip": lambda m: request(m, b"\1\x1f\x8b\x08\x00" + DICE.randbytes(50)),
    "lz4": lambda m: request(m, b"\1\x04\x22\x4d\x18" + DICE.randbytes(50)),
    "blosc2": lambda m: request(m, b"\1\x02\x01\x03\x01" + DICE.randbytes(50)),
}
ANS: dict[str, Callable[[Manifest], bytes]] = {
    "empty": lambda m: request(m, b"", "q4"),
    "zero": lambda m: request(m, b"\0", "q4"),
    "only ones": lambda m: request(m, b"\xff" * longest(m), "q4"),
    "only zeros": lambda m: request(m, bytes(longest(m)), "q4"),
    "one byte over": lambda m: request(m, b"\xff" * (longest(m) + 1), "q4"),
    "noise": lambda m: request(m, DICE.randbytes(longest(m)), "q4"),
    "zstd": lambda m: request(m, whole(m), "q4"),
}


@pytest.mark.parametrize("kind", ZSTD)
def test_a_lying_zstd_payload_harms_nobody(victim, company, kind):
    raw = ZSTD[kind](victim.manifest)
    refused(victim, raw)
    refused_between_good_ones(victim, raw)
    company.harmless(raw)


@pytest.mark.parametrize("kind", ANS)
def test_a_lying_entropy_coded_payload_harms_nobody(victim, company, kind):
    raw = ANS[kind](victim.manifest)
    refused(victim, raw)
    refused_between_good_ones(victim, raw)
    company.harmless(raw)


@pytest.fixture(scope="module")
def payloads(model_dir) -> dict[str, bytes]:
    """A real payload of each rung whose coder saves."""
    manifest = Manifest.load(model_dir)
    random_, found = np.random.default_rng(0), {}
    for plan, codec in codecs(model_dir, manifest).items():
        if codec.codes:
            levels = 2**codec.bits
            steps = random_.normal(levels // 2, levels / 40, elements(manifest))
            codes = steps.round().clip(0, levels - 2).astype(np.uint8)
            found[plan] = codec.encode(codes.reshape(manifest.cut.shape))
    assert found["q8"][0] == 1 and set(found) == {"q8", "q4"}
    return found


@pytest.mark.parametrize("plan", ["q8", "q4"])
def test_every_truncation_of_a_real_payload_is_refused(victim, payloads, plan):
    good = payloads[plan]
    with unharmed(victim, {"INVALID": len(good), "OK": 1}):
        for end in range(len(good)):
            name, words = told(victim.channel, request(victim.manifest, good[:end], plan))
            assert name == "INVALID" and discreet(words), (end, words)
        assert told(victim.channel, request(victim.manifest, good, plan))[0] == "OK"


@pytest.mark.parametrize("plan", ["q8", "q4"])
def test_every_byte_of_a_real_payload_may_flip(victim, payloads, plan):
    """What opens all the same is answered as other codes; the bits are flipped one by one in
    test_decoders.
    """
    good, seen = payloads[plan], set()
    with unharmed(victim):
        for place in range(len(good)):
            wrong = bytearray(good)
            wrong[place] ^= 0xFF
            name, words = told(victim.channel, request(victim.manifest, bytes(wrong), plan))
            assert name in ("OK", "INVALID") and discreet(words), (place, words)
            seen.add(name)
    assert "INVALID" in seen


def test_the_dictionary_is_the_models_or_none(victim, model_dir, payloads):
    """A payload made with another dictionary never opens as the codes that were meant."""
    manifest = victim.manifest
    known = codecs(model_dir, manifest)["q8"]
    trained = (model_dir / "q8.dict").read_bytes()
    strange = zstandard.ZstdCompressionDict(trained[:-1000] + bytes(1000))
    codes = known.open(payloads["q8"])
    settings = zstandard.ZstdCompressionParameters.from_level(
        1, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_dict_id=False
    )
    squeezer = zstandard.ZstdCompressor(dict_data=strange, compression_params=settings)
    raw = request(manifest, b"\1" + squeezer.compress(codes))
    with unharmed(victim):
        for _ in range(200):
            name, words = told(victim.channel, raw)
            assert name in ("OK", "INVALID") and discreet(words)
