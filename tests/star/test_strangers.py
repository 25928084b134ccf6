"""Who may not be a spoke: other secrets, other certificates, noise; none of it harms who may."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from splitrt.core.shards import Shards
from splitrt.star import Seal
from splitrt.star.call import HUB, SPOKE
from splitrt.star.point import Point
from splitrt.star.roster import Roster
from splitrt.wire import star_pb2 as wire
from tests.cloud.test_identity import LOOPBACK, made
from tests.star.crowd import CALM, LOCAL, Sums, grown, points
from tests.star.toy import LONG, Toy, until

SECRET = "c0ffee" * 8


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    ca, other = (made(folder, name, None, []) for name in ("ca", "other"))
    return {
        "ca": ca,
        "other": other,
        "device": made(folder, "device", ca, [LOOPBACK]),
        "stranger": made(folder, "stranger", other, [LOOPBACK]),
    }


def refusal(
    star_dir: Path, star: Shards, tmp_path: Path, caplog: Any, hub: Seal, spoke: Seal
) -> str:
    """What a spoke says that is not let in; the right one is, all the same."""
    with Roster(star_dir, star, LOCAL, seal=hub, patience=CALM) as roster:
        with caplog.at_level(logging.WARNING, "splitrt.star.point"):
            with points(roster.address, tmp_path, ["eve"], seal=spoke):
                until(lambda: "not in a star" in caplog.text, "it was not refused")
                with points(roster.address, tmp_path, ["ann"], seal=hub):
                    (ann,) = roster.wait(1, LONG)
                    assert ann.name == "ann"
        return caplog.text


@pytest.mark.parametrize("secret", ["0ffee" * 8, None])
def test_another_secret_is_refused_by_the_spoke_that_has_one(
    star_dir, star, tmp_path, caplog, secret
):
    """It is the hub that proves itself first."""
    said = refusal(star_dir, star, tmp_path, caplog, Seal(secret=SECRET), Seal(secret=secret))
    assert "has not this star's secret" in said


def test_the_right_secret_and_certificates_are_let_in_and_add_up(star_dir, star, tmp_path, papers):
    device = papers["device"]
    seal = Seal(device.cert, device.key, papers["ca"].cert, SECRET)
    with Roster(star_dir, star, LOCAL, seal=seal, patience=CALM) as roster:
        with points(roster.address, tmp_path, ["ann"], seal=seal):
            assert len(roster.wait(1, LONG)) == 1
            with Point(wait=LOCAL, layers=Toy, store=tmp_path, seal=seal, name="bob") as bob:
                roster.invite(bob.address)
                ann, guest = roster.wait(2, LONG)
                assert (ann.name, guest.name) == ("ann", "bob")
                with Sums(roster, star, 1, {ann: [1], guest: [2]}, seal=seal) as step:
                    assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)


@pytest.mark.parametrize(
    ("spoke", "told"),
    [
        (lambda p: Seal(p["stranger"].cert, p["stranger"].key, p["ca"].cert), "hung up"),
        (lambda p: Seal(ca=p["ca"].cert), "hung up"),
        (
            lambda p: Seal(p["device"].cert, p["device"].key, p["other"].cert),
            "TLS handshake failed",
        ),
        (lambda p: Seal(), "hung up|cannot be reached|does not answer"),
    ],
)
def test_another_certificate_is_refused(star_dir, star, tmp_path, papers, caplog, spoke, told):
    device = papers["device"]
    hub = Seal(device.cert, device.key, papers["ca"].cert)
    said = refusal(star_dir, star, tmp_path, caplog, hub, spoke(papers))
    assert any(one in said for one in told.split("|")), said


# what strangers say


class Stranger:
    """A spoke that says what the test wants."""

    def __init__(self, address: str, seal: Seal = Seal()) -> None:
        self._channel = grpc.insecure_channel(address)
        self._join = self._channel.stream_stream("/splitrt.wire.star.Star/Join")
        self._fetch = self._channel.unary_stream("/splitrt.wire.star.Star/Fetch")
        self._seal = seal

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def says(self, *messages: bytes | wire.FromSpoke) -> grpc.StatusCode:
        """With what status the hub ends the call that says just that."""
        words = [one if isinstance(one, bytes) else one.SerializeToString() for one in messages]
        call = self._join(iter(words), timeout=LONG)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        return caught.value.code()

    def joins(self, *then: wire.FromSpoke, name: str = "eve") -> tuple[wire.Welcome, Any]:
        """A welcome, the call, and what is said after it."""
        outbox: list[bytes] = []
        more = threading.Semaphore(0)

        def spoken() -> Iterator[bytes]:
            while True:
                more.acquire()
                yield outbox.pop(0)

        def say(message: wire.FromSpoke) -> None:
            outbox.append(message.SerializeToString())
            more.release()

        call = self._join(spoken(), timeout=LONG)
        own = bytes(32)
        say(wire.FromSpoke(hello=wire.Hello(protocol=1, name=name, nonce=own)))
        challenge = wire.ToSpoke.FromString(next(call)).challenge
        both = (own, challenge.nonce, name.encode())
        assert self._seal.proves(challenge.proof, HUB, *both)
        say(wire.FromSpoke(proof=wire.Proof(proof=self._seal.proof(SPOKE, *both))))
        welcome = wire.ToSpoke.FromString(next(call)).welcome
        for message in then:
            say(message)
        return welcome, call

    def fetches(self, wanted: bytes | wire.Wanted) -> bytes | grpc.StatusCode:
        """A file, or why not."""
        raw = wanted if isinstance(wanted, bytes) else wanted.SerializeToString()
        try:
            pieces = [wire.Piece.FromString(one) for one in self._fetch(raw, timeout=LONG)]
        except grpc.RpcError as error:
            return error.code()
        assert all(len(one.data) <= 1 << 20 for one in pieces)
        return b"".join(one.data for one in pieces)


HELLO = wire.Hello(protocol=1, name="eve", nonce=bytes(32))


def named(name: str) -> wire.FromSpoke:
    return wire.FromSpoke(hello=wire.Hello(protocol=1, name=name, nonce=bytes(32)))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "INVALID_ARGUMENT"),
        ([b"\xff" * 40], "INVALID_ARGUMENT"),
        ([bytes(1 << 20)], "RESOURCE_EXHAUSTED"),
        ([wire.FromSpoke(beat=wire.Beat())], "INVALID_ARGUMENT"),
        ([wire.FromSpoke(able=wire.Able(seconds=1))], "INVALID_ARGUMENT"),
        ([wire.FromSpoke(hello=wire.Hello(protocol=2))], "PERMISSION_DENIED"),
        ([wire.FromSpoke(hello=wire.Hello(protocol=1, name="eve"))], "PERMISSION_DENIED"),
        ([named("\n")], "PERMISSION_DENIED"),
        ([named("a/b")], "PERMISSION_DENIED"),
        ([wire.FromSpoke(hello=HELLO)], "INVALID_ARGUMENT"),
        ([named("eve"), wire.FromSpoke(proof=wire.Proof(proof=bytes(32)))], "UNAUTHENTICATED"),
        ([named("eve"), wire.FromSpoke(proof=wire.Proof())], "UNAUTHENTICATED"),
    ],
)  # fmt: skip
def test_garbage_ends_its_own_call_alone(roster, tmp_path, messages, code):
    with points(roster.address, tmp_path, ["ann"]):
        (ann,) = roster.wait(1, LONG)
        with Stranger(roster.address) as eve:
            assert eve.says(*messages).name == code
        assert roster.guests == (ann,) and ann.alive


@pytest.mark.parametrize(
    "then",
    [
        [wire.FromSpoke()],
        [wire.FromSpoke(hello=HELLO)],
        [wire.FromSpoke(ready=wire.Ready(epoch=1))],
        [wire.FromSpoke(able=wire.Able(seconds=0))],
        [wire.FromSpoke(able=wire.Able(seconds=float("nan")))],
        [wire.FromSpoke(able=wire.Able(seconds=float("inf")))],
        [wire.FromSpoke(able=wire.Able(seconds=1)), wire.FromSpoke(able=wire.Able(seconds=1))],
    ],
)
def test_whoever_is_in_and_says_what_cannot_be_is_out(roster, then):
    with Stranger(roster.address) as eve:
        _, call = eve.joins(*then)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    until(lambda: not roster.guests, "it is still a guest")


def test_proofs_are_not_said_back(star_dir, star):
    """The hub's own proof, said by a spoke, proves nothing."""
    with Roster(star_dir, star, LOCAL, seal=Seal(secret=SECRET)) as roster:
        with grpc.insecure_channel(roster.address) as channel:
            said: list[bytes] = [wire.FromSpoke(hello=HELLO).SerializeToString()]
            there = threading.Event()

            def spoken() -> Iterator[bytes]:
                yield said[0]
                there.wait(LONG)
                yield said[1]

            call = channel.stream_stream("/splitrt.wire.star.Star/Join")(spoken(), timeout=LONG)
            shown = wire.ToSpoke.FromString(next(call)).challenge.proof
            said.append(wire.FromSpoke(proof=wire.Proof(proof=shown)).SerializeToString())
            there.set()
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_only_guests_fetch_and_only_what_the_manifest_names(roster, star, star_dir):
    sha256 = bytes.fromhex(star.devices[1].files["feed-1.bin"])
    content = (star_dir / "spoke-1" / "feed-1.bin").read_bytes()
    with Stranger(roster.address) as eve:
        welcome, call = eve.joins()
        sid = welcome.sid
        assert eve.fetches(wire.Wanted(sid=sid, sha256=sha256)) == content
        assert eve.fetches(wire.Wanted(sid=sid, sha256=sha256, offset=1000)) == content[1000:]
        assert eve.fetches(wire.Wanted(sid=sid, sha256=sha256, offset=2**64 - 1)) == b""
        for wanted_, code in (
            (b"\xff\xff", "UNAUTHENTICATED"),
            (wire.Wanted(sid=bytes(16), sha256=sha256), "UNAUTHENTICATED"),
            (wire.Wanted(sha256=sha256), "UNAUTHENTICATED"),
            (wire.Wanted(sid=sid, sha256=bytes(32)), "NOT_FOUND"),
            (wire.Wanted(sid=sid, sha256=b"../../etc/passwd"), "NOT_FOUND"),
            (wire.Wanted(sid=sid), "NOT_FOUND"),
        ):
            assert eve.fetches(wanted_).name == code
        call.cancel()
        until(lambda: not roster._lobby._visits, "its end was not noticed")
        assert eve.fetches(wire.Wanted(sid=sid, sha256=sha256)).name == "UNAUTHENTICATED"


def test_a_manifest_that_is_none_is_not_taken(star_dir, star, tmp_path, caplog):
    """The hub is another program that knows the secret: what it says is checked all the same."""
    with Roster(star_dir, star, LOCAL, patience=CALM) as roster:
        for text in (b"", b"\xff", b'kind = "star"', b"a." * 200 + b"b = 1", b"[" * 100_000):
            roster._lobby._text = text
            caplog.clear()
            with points(roster.address, tmp_path, ["ann"]):
                until(
                    lambda: "model.toml" in caplog.text or "no star" in caplog.text, "it was taken"
                )
        assert roster.guests == ()
    assert list((tmp_path / "ann" / "models").iterdir()) == []


def test_no_more_spokes_than_a_star_has(roster, monkeypatch):
    monkeypatch.setattr("splitrt.star.lobby.MOST", 2)
    with Stranger(roster.address) as eve:
        calls = [eve.joins(name=name)[1] for name in ("a", "b")]
        assert eve.says(wire.FromSpoke(hello=HELLO)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        calls[0].cancel()
        until(lambda: len(roster._lobby._visits) == 1, "its end was not noticed")
        eve.joins(name="c")
