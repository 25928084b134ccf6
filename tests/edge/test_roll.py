"""Whose turn it is among the servers: lists, names that stand for several, and what goes wrong."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cryptography import x509

from splitrt import Edge, LinkDown, LinkError, Refused, SplitrtError, Trust
from splitrt.cloud import Guard, Server
from splitrt.core.manifest import Manifest
from splitrt.edge import roll as module
from splitrt.edge.link import Link
from splitrt.edge.roll import Roll, host_and_port, looked_up
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import add_TailServicer_to_server
from tests.cloud.test_identity import made
from tests.conftest import pictures
from tests.edge.names import Names
from tests.edge.test_link import Scripted, gone, parcel, right, soon

PODS = [f"10.0.0.{number}" for number in range(1, 5)]


def rolled(addresses: str, seed: int = 0) -> Roll:
    return Roll(addresses, Trust(), dice=random.Random(seed))


def turns(roll: Roll, count: int) -> list[str]:
    """Who is tried when nobody answers."""
    found = []
    for _ in range(count):
        roll.look()
        found.append(roll.address)
        roll.next()
    return found


def at(addresses: list[str]) -> set[str]:
    return {f"{one}:7" for one in addresses}


def test_a_list_is_tried_in_turn_as_it_was_given():
    roll = rolled("a:1, b:2 ,c:3,")
    assert len(roll) == 3
    assert turns(roll, 7) == ["a:1", "b:2", "c:3", "a:1", "b:2", "c:3", "a:1"]


def test_a_name_stands_for_all_its_addresses(monkeypatch):
    names = Names(monkeypatch, tails=PODS)
    roll = rolled("dns:///tails.test:7")
    assert roll.address == "dns:///tails.test:7" and len(roll) == 1
    found = turns(roll, 4)
    assert set(found) == at(PODS) and len(roll) == 4
    assert names.asked == {"tails.test": 1}


def test_devices_spread_over_the_servers_of_a_name(monkeypatch):
    Names(monkeypatch, tails=PODS)
    first = [turns(rolled("dns:///tails.test:7", seed), 1)[0] for seed in range(400)]
    assert all(70 < first.count(one) < 130 for one in at(PODS))


def test_the_name_is_asked_anew_once_all_were_tried_or_a_connection_was_lost(monkeypatch):
    names = Names(monkeypatch, tails=PODS[:2])
    roll = rolled("dns:///tails.test:7")
    turns(roll, 2)
    assert names.asked["tails.test"] == 1
    turns(roll, 1)
    assert names.asked["tails.test"] == 2
    roll.lost()
    roll.look()
    assert names.asked["tails.test"] == 3


def test_who_was_lost_comes_last_and_who_is_new_may_come_first(monkeypatch):
    names, nexts = Names(monkeypatch), []
    for seed in range(60):
        names.table["tails.test"] = PODS[:1]
        roll = rolled("dns:///tails.test:7", seed)
        roll.look()
        names.table["tails.test"] = PODS[:3]
        roll.lost()
        roll.next()
        nexts.append(turns(roll, 3))
    assert {found[0] for found in nexts} == at(PODS[1:3])
    assert {found[2] for found in nexts} == at(PODS[:1])


def test_who_stays_with_a_server_goes_on_with_it_unless_it_has_left_the_name(monkeypatch):
    names = Names(monkeypatch, tails=PODS[:2])
    roll = rolled("dns:///tails.test:7")
    roll.look()
    here = roll.address
    names.table["tails.test"] = PODS
    roll.lost()
    roll.look()
    assert roll.address == here and len(roll) == 4
    names.table["tails.test"] = [one for one in PODS if f"{one}:7" != here]
    roll.lost()
    roll.look()
    assert roll.address != here and len(roll) == 3


def test_a_resolver_that_fails_leaves_the_servers_as_they_were(monkeypatch):
    names = Names(monkeypatch, tails=PODS)
    roll = rolled("dns:///tails.test:7")
    before = turns(roll, 4)
    for answer in (None, []):
        names.table = {} if answer is None else {"tails.test": answer}
        assert turns(roll, 4) == before
    with pytest.raises(LinkDown, match="stands for no address"):
        rolled("dns:///unknown.test:7").look()


def test_a_resolver_that_hangs_holds_nobody_up_who_knows_a_server(monkeypatch):
    names = Names(monkeypatch, tails=PODS[:2])
    monkeypatch.setattr(module, "PATIENCE", 3600.0)
    roll = rolled("dns:///tails.test:7")
    roll.look()
    names.free.clear()
    names.table["tails.test"] = PODS[2:]
    assert set(turns(roll, 6)) == at(PODS[:2])
    assert names.asked["tails.test"] == 2  # the one that hangs is not asked twice
    names.free.set()
    assert soon(lambda: roll.look() is None and roll.address in at(PODS[2:]))


def test_a_list_may_hold_names_and_a_name_may_have_addresses_of_version_6(monkeypatch):
    Names(monkeypatch, tails=["::1", "127.0.0.1"])
    roll = rolled("a:1,dns:///tails.test:7,[::1]:9")
    found = turns(roll, 4)
    assert found[0] == "a:1" and found[3] == "[::1]:9"
    assert set(found[1:3]) == {"127.0.0.1:7", "[::1]:7"}
    assert looked_up("[::1]:50700", Trust()) == ["[::1]:50700"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "no server's address"),
        (" , ", "no server's address"),
        ("http://gpu-box:50700", "nothing is known of http://"),
        ("a:1,ftp://b:2", "nothing is known of ftp://"),
        ("dns://8.8.8.8/gpu-box:50700", "a name server of its own"),
        ("dns:///gpu-box", "'gpu-box' is no host and port"),
        ("dns:///gpu-box:0", "is no host and port"),
        ("dns:///gpu-box:65536", "is no host and port"),
        ("dns:///::1:50700", "is no host and port"),
        ("dns:///", "'' is no host and port"),
        ("dns:///gpu box:1", "is no host and port"),
    ],
)
def test_what_is_no_way_to_a_server_is_said_at_once(address, words):
    with pytest.raises(LinkError, match=words) as raised:
        rolled(address)
    assert "\nhelp: host:port" in str(raised.value)


def test_a_host_and_its_port_are_told_apart():
    assert host_and_port("", "gpu-box:50700") == ("gpu-box", 50700)
    assert host_and_port("", "[fd00::1]:50700") == ("fd00::1", 50700)


def test_a_token_is_not_sent_in_the_clear_to_a_name():
    with pytest.raises(SplitrtError, match="would travel unencrypted"):
        Roll("dns:///tails.test:7", Trust(token="secret"))
    Roll("dns:///localhost:7", Trust(token="secret"))


def test_a_daemon_is_told_of_a_wrong_address_before_it_starts(tmp_path):
    from splitrt.daemon.told import read

    file = tmp_path / "daemon.toml"
    for cloud in ("dns:///tails.test:7", "a:1,b:2"):
        file.write_text(f'[models.birds]\npath = "birds"\ncloud = "{cloud}"\n')
        assert read(file, {}).models["birds"].cloud == cloud
    file.write_text('[models.birds]\npath = "birds"\ncloud = "http://a:1"\n')
    with pytest.raises(SplitrtError, match=r"models\.birds\.cloud = 'http://a:1'\nhelp: wanted"):
        read(file, {})


def test_a_frame_whose_server_is_lost_goes_to_another_address_of_the_name(monkeypatch, model_dir):
    """127.0.0.1 takes the frame and ends the stream; 127.0.0.2, on the same port, answers."""
    Names(monkeypatch, tails=["127.0.0.1", "127.0.0.2"])
    taken = []

    def first(frame: wire.Frame) -> None:
        taken.append(frame)
        return gone(frame)

    servers = [grpc.server(ThreadPoolExecutor(4)) for _ in range(2)]
    for server, script in zip(servers, (first, right), strict=True):
        add_TailServicer_to_server(Scripted(script), server)
    port = servers[0].add_insecure_port("127.0.0.1:0")
    assert servers[1].add_insecure_port(f"127.0.0.2:{port}") == port
    for server in servers:
        server.start()
    try:
        while not taken:  # the shuffle decides who is first
            link = Link(f"dns:///tails.test:{port}", Manifest.load(model_dir))
            assert link.send(parcel()).future.result(20).answer.status == wire.OK
            assert soon(lambda link=link: link.address == f"127.0.0.2:{port}")
            link.close()
    finally:
        for server in servers:
            server.stop(0).wait()


def test_the_certificate_is_for_the_name_whatever_the_address(monkeypatch, model_dir, tmp_path):
    Names(monkeypatch, tails=["127.0.0.1"], others=["127.0.0.1"])
    ca = made(tmp_path, "ca", None, [])
    own = made(tmp_path, "server", ca, [x509.DNSName("tails.test")])
    trust = Trust(ca.cert)
    image = pictures(1).images[0]
    with Server(model_dir, port=0, threads=1, guard=Guard(own.cert, own.key)) as server:
        where = f"dns:///tails.test:{server.port}"
        with Edge(model_dir, cloud=where, plan="q4", trust=trust) as edge:
            assert edge(image).where == "cloud"
        for wrong in (f"dns:///others.test:{server.port}", server.address):
            with Edge(model_dir, cloud=wrong, plan="q4", trust=trust) as edge:
                assert edge(image).where == "edge"
                with pytest.raises(Refused, match="the TLS handshake failed"):
                    edge._link.send(parcel())


def test_a_link_to_a_name_that_nobody_knows_says_so_and_waits_for_it(monkeypatch, model_dir):
    names = Names(monkeypatch)
    with Server(model_dir, port=0, threads=1) as server:
        link = Link(f"dns:///tails.test:{server.port}", Manifest.load(model_dir))
        try:
            with pytest.raises(LinkDown, match=r"dns:///tails\.test:\d+ stands for no address"):
                link.send(parcel())
            names.table["tails.test"] = ["127.0.0.1"]
            assert soon(lambda: link.up)
            started = time.monotonic()
        finally:
            link.close()
        assert time.monotonic() - started < 10
