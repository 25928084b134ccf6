"""Devices that ask where the servers of a fleet are: what they are told, by whom, and lies."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from cryptography import x509

from splitrt import Edge, LinkDown, LinkError, PacketError, Refused, SplitrtError, Trust
from splitrt.cloud import Guard, Server
from splitrt.edge.fleet import LARGEST, MOST, Fleet, replicas
from splitrt.edge.roll import Roll
from splitrt.fleet.door import Door
from splitrt.wire import fleet_pb2 as wire
from splitrt.wire.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from tests.cloud.test_identity import made
from tests.conftest import pictures
from tests.edge.test_link import soon

TOKEN = "c0ffee" * 8


class Told(FleetServicer):
    """Answers with what the test says; `asked` counts."""

    def __init__(self, *entries: wire.Replica) -> None:
        self.entries, self.asked = list(entries), 0

    def Replicas(self, request, context):
        self.asked += 1
        return wire.Known(replicas=self.entries)


@contextmanager
def telling(*entries: wire.Replica) -> Iterator[tuple[Told, str]]:
    told, server = Told(*entries), grpc.server(ThreadPoolExecutor(2))
    add_FleetServicer_to_server(told, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield told, f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def one(address: str, inflight: float = 0, devices: int = 0) -> wire.Replica:
    return wire.Replica(address=address, inflight=inflight, devices=devices)


def test_the_server_with_least_to_do_comes_first():
    entries = one("a:1", 9.2), one("b:1", 0.2, 7), one("c:1", 0.4, 2), one("d:1", 3.0)
    with telling(*entries) as (_, door):
        assert replicas(door, Trust()) == ["c:1", "b:1", "d:1", "a:1"]


def test_a_load_that_is_no_number_of_frames_comes_last():
    strange = [one("nan:1", float("nan")), one("inf:1", float("inf")), one("less:1", -5.0)]
    with telling(*strange, one("a:1", 100.0)) as (_, door):
        assert replicas(door, Trust())[0] == "a:1"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a",
        "a:0",
        "a:65536",
        "unix:/run/a",
        "dns:///a:1",
        "a:1,b:1",
        "a b:1",
        "a:1\n",
        "x" * 300,
        "x" * 255 + ":50700, and more",
        "unix:123",
        "unix-abstract:123",
    ],
)
def test_what_is_no_server_is_not_taken(address):
    with telling(one("a:1"), one(address)) as (_, door):
        with pytest.raises(PacketError, match="tells of a server at"):
            replicas(door, Trust())


def test_a_liar_cannot_make_a_device_remember_much():
    with telling(*[one(f"a{place}:1") for place in range(MOST + 1)]) as (told, door):
        with pytest.raises(PacketError, match=f"tells of {MOST + 1} servers"):
            replicas(door, Trust())
        told.entries = [one("a" * LARGEST + ":1")]
        with pytest.raises(LinkDown, match="RESOURCE_EXHAUSTED"):
            replicas(door, Trust())


def test_a_server_without_a_fleet_says_so(server):
    with pytest.raises(LinkDown, match="is of no fleet\nhelp: name it as it is"):
        replicas(server.address, Trust())


def test_nobody_there_is_an_error_in_time():
    with pytest.raises(LinkDown, match="does not tell of its fleet"):
        replicas("127.0.0.1:1", Trust())


def test_a_door_that_is_gone_is_not_needed_by_who_knows_a_replica():
    fleet = Fleet(random.Random(0))
    with telling() as (replica, there):
        replica.entries = [one(there)]
        with telling(one(there)) as (_, door):
            assert fleet(door, Trust()) == [there]
        replica.entries = [one(there), one("new:1")]
        assert sorted(fleet(door, Trust())) == [there, "new:1"]
    with pytest.raises(LinkError):
        fleet(door, Trust())


def test_where_the_door_is_a_replica_that_is_gone_every_other_one_is_asked():
    for seed in range(8):  # whatever the order in which they are asked
        fleet = Fleet(random.Random(seed))
        with telling() as (replica, there):
            with telling() as (told, door):
                told.entries = replica.entries = [one(there), one(door)]
                assert sorted(fleet(door, Trust())) == sorted([there, door])
            assert sorted(fleet(door, Trust())) == sorted([there, door])


def test_a_lie_of_the_door_does_not_hide_what_was_known():
    with telling(one("a:1")) as (told, door):
        roll = Roll(f"fleet://{door}", Trust())
        roll.look()
        told.entries = [one("unix:/etc/passwd")]
        roll.lost()
        roll.next()
        assert soon(lambda: told.asked == 2 or roll.look())
        assert roll.address == "a:1"


def test_who_was_lost_comes_last_though_it_has_least_to_do():
    with telling(one("a:1", 0), one("b:1", 9)) as (_, door):
        roll = Roll(f"fleet://{door}", Trust())
        roll.look()
        assert roll.address == "a:1"
        roll.lost()
        roll.next()
        roll.look()
        assert roll.address == "b:1"


def test_a_device_goes_where_the_fleet_is_and_on_when_its_server_ends(model_dir):
    peers: list[wire.Replica] = []
    image = pictures(1).images[0]
    servers = [Server(model_dir, port=0, threads=1, peers=lambda: peers) for _ in range(2)]
    peers += [one(servers[0].address, 0), one(servers[1].address, 1)]
    with servers[1], servers[0]:
        with Door(lambda: peers, host="127.0.0.1", port=0, guard=Guard()) as door:
            with Edge(model_dir, cloud=f"fleet://{door.address}", plan="q4") as edge:
                assert edge(image).where == "cloud"
                assert servers[0].devices == 1 and servers[1].devices == 0
                del peers[0]
                servers[0].close()
                assert soon(lambda: edge(image).where == "cloud")
                assert servers[1].devices == 1


def test_every_server_of_a_fleet_tells_and_knows_what_it_serves(model_dir):
    with Server(model_dir, port=0, threads=1, peers=lambda: [one("a:1")]) as server:
        assert replicas(server.address, Trust()) == ["a:1"]
        assert server.models == {"small": server.manifest.digest}


def test_who_may_not_come_in_is_told_nothing(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"door-cam:{TOKEN}\n")
    guard = Guard(tokens=tokens)
    with Door(lambda: [one("a:1")], host="127.0.0.1", port=0, guard=guard) as door:
        assert replicas(door.address, Trust(token=TOKEN)) == ["a:1"]
        for stranger in (Trust(), Trust(token=TOKEN[::-1])):
            with pytest.raises(Refused, match="token"):
                replicas(door.address, stranger)


def test_replicas_have_the_certificate_of_the_door(model_dir, tmp_path):
    """Their addresses change: what is proved is the name that the device was given."""
    ca = made(tmp_path, "ca", None, [])
    own = made(tmp_path, "own", ca, [x509.DNSName("localhost")])
    guard, peers = Guard(own.cert, own.key), []
    image = pictures(1).images[0]
    with Server(model_dir, port=0, threads=1, guard=guard, peers=lambda: peers) as server:
        peers.append(one(server.address))  # 127.0.0.1 is not in the certificate
        with Door(lambda: peers, host="localhost", port=0, guard=guard) as door:
            where = f"fleet://{door.address}"
            with Edge(model_dir, cloud=where, plan="q4", trust=Trust(ca.cert)) as edge:
                assert edge(image).where == "cloud"


def test_a_request_that_is_none_is_refused():
    with Door(list, host="127.0.0.1", port=0, guard=Guard()) as door:
        with grpc.insecure_channel(door.address) as channel:
            ask = channel.unary_unary("/splitrt.wire.Fleet/Replicas")
            with pytest.raises(grpc.RpcError) as raised:
                ask(b"\xff", timeout=10)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_door_whose_port_is_taken_says_so(server):
    with pytest.raises(LinkError, match="cannot be bound\nhelp: another port"):
        Door(list, host="127.0.0.1", port=server.port, guard=Guard())


@pytest.mark.parametrize("address", ["fleet://", "fleet://a", "fleet:///a:1", "fleet://a:0"])
def test_a_fleet_without_a_place_is_an_error_at_once(address):
    with pytest.raises(LinkError, match="is no host and port"):
        Roll(address, Trust())


def test_a_door_whose_certificate_cannot_be_read_is_an_error(tmp_path):
    guard, told = Guard(cert=tmp_path / "none.pem", key=tmp_path / "none.key"), []

    def start() -> None:
        with pytest.raises(SplitrtError, match="cannot be read"):
            Door(list, host="127.0.0.1", port=0, guard=guard)
        told.append(True)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join(20)
    assert told
