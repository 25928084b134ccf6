"""Who may be a device of a star: certificates, a secret, terms; and who is sent away."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from splitrt import LinkDown, Refused, SplitrtError
from splitrt.star import Hub, Seal, Spoke, Way
from splitrt.star.frame import HEAD
from tests.cloud.test_identity import LOOPBACK, made
from tests.star.ring import PATIENCE, added, part, terms, together

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


def sealed(papers, by: str = "ca", name: str = "device", **more: str) -> Seal:
    own = papers[name]
    return Seal(cert=own.cert, key=own.key, ca=papers[by].cert, **more)


def sums(party: Hub | Spoke) -> list[bytes]:
    found = []
    for kind in ("star", "mesh"):
        party.way = Way(kind)
        found.append(party.reduce(part(party.device, 16)).tobytes())
    return found


def test_an_encrypted_star_adds_both_ways(papers):
    wanted = [added(3, 16).tobytes()] * 2
    assert together(terms(3), sums, seal=sealed(papers, secret=SECRET)) == [wanted] * 3


def test_an_encrypted_mesh_carries_large_parts(papers):
    def work(party: Hub | Spoke) -> bytes:
        party.way = Way("mesh")
        return party.reduce(part(party.device, 200, 4096)).tobytes()

    found = together(terms(3, 4096, rows=200), work, seal=sealed(papers))
    assert found == [added(3, 200, 4096).tobytes()] * 3


def refused(hub_seal: Seal, spoke_seal: Seal, spoke_terms=None, device: int = 1) -> Exception:
    """Why a spoke is not taken; the hub then still takes the right one."""
    agreed = terms(2)
    with Hub("127.0.0.1:0", agreed, seal=hub_seal) as hub, ThreadPoolExecutor(2) as pool:
        gathering = pool.submit(hub.gather, PATIENCE)
        with pytest.raises(SplitrtError) as caught:
            Spoke(hub.address, spoke_terms or agreed, device=device, seal=spoke_seal, timeout=1.0)
        with Spoke(hub.address, agreed, device=1, seal=hub_seal, timeout=PATIENCE) as right:
            gathering.result()
            summing = pool.submit(right.reduce, part(1, 1))
            assert hub.reduce(part(0, 1)).tobytes() == added(2, 1).tobytes()
            summing.result()
    return caught.value


@pytest.mark.parametrize("secret", ["0ffee" * 8, None])
def test_another_secret_is_refused_and_the_star_goes_on(secret):
    error = refused(Seal(secret=SECRET), Seal(secret=secret))
    assert isinstance(error, Refused) and "not the secret of this star" in str(error)


def test_a_hub_without_the_secret_is_not_believed():
    error = refused_by_hub(Seal(), Seal(secret=SECRET))
    assert isinstance(error, Refused)


def refused_by_hub(hub_seal: Seal, spoke_seal: Seal) -> Exception:
    with Hub("127.0.0.1:0", terms(2), seal=hub_seal) as hub, ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(hub.gather, 1.0)
        with pytest.raises(SplitrtError) as caught:
            Spoke(hub.address, terms(2), device=1, seal=spoke_seal, timeout=1.0)
        with pytest.raises(LinkDown, match="devices 1 have not come"):
            gathering.result()
    return caught.value


def test_another_authoritys_certificate_is_refused(papers):
    hub = sealed(papers)
    assert isinstance(refused_by_hub(hub, sealed(papers, by="other")), Refused)  # spoke's view
    refused_by_hub(hub, sealed(papers, name="stranger"))  # the hub's
    refused_by_hub(hub, Seal(ca=papers["ca"].cert))  # no certificate
    refused_by_hub(hub, Seal())  # no encryption


@pytest.mark.parametrize("other", [{"hidden": 95}, {"rows": 3}, {"devices": 3}, {"model": "x"}])
def test_other_terms_are_refused_in_words(other):
    error = refused(Seal(), Seal(), replace(terms(2), **other))
    (name,) = other
    assert isinstance(error, Refused) and f"here {name} = " in str(error)


@pytest.mark.parametrize("device", [0, 2, -1])
def test_a_number_that_is_not_free_is_refused(device):
    assert "[1] are free" in str(refused(Seal(), Seal(), device=device))


@pytest.mark.parametrize(
    "noise",
    [b"", b"GET / HTTP/1.1\r\n\r\n", HEAD.pack(b"JOIN", 2**32 - 1, 0), HEAD.pack(b"JOIN", 0, 0),
     HEAD.pack(b"JOIN", 70, 0) + bytes(70)],
)  # fmt: skip
def test_noise_does_not_keep_a_star_from_gathering(noise):
    with Hub("127.0.0.1:0", terms(2)) as hub, ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(hub.gather, PATIENCE)
        host, port = hub.address.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(noise)
        with Spoke(hub.address, terms(2), device=1, timeout=PATIENCE):
            gathering.result()


def test_the_missing_are_named():
    with Hub("127.0.0.1:0", terms(3)) as hub, pytest.raises(LinkDown, match="devices 1, 2 have"):
        hub.gather(0.1)


def test_a_spoke_may_be_there_before_the_hub():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(Spoke, address, terms(2), device=1, timeout=PATIENCE)
        time.sleep(0.3)
        with Hub(address, terms(2)) as hub:
            hub.gather(PATIENCE)
            with coming.result() as spoke:
                hub.tell(b"hello")
                assert spoke.hear(timeout=PATIENCE) == b"hello"


def test_a_hub_that_never_comes_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(LinkDown, match="is the hub running"):
        Spoke(address, terms(2), device=1, timeout=0.2)


def test_a_seal_says_what_it_lacks(papers):
    with pytest.raises(SplitrtError, match="a certificate without key"):
        Seal(cert=papers["device"].cert)
    with pytest.raises(SplitrtError, match="shorter than 16"):
        Seal(secret="short")
    with pytest.raises(SplitrtError, match="no pair"):
        Hub("127.0.0.1:0", terms(1), seal=Seal(papers["device"].cert, papers["ca"].key))
    assert SECRET not in repr(Seal(secret=SECRET))


def test_a_dead_stars_sum_is_no_array():
    with Hub("127.0.0.1:0", terms(1)) as hub:
        hub.close()
        with pytest.raises(LinkDown, match="this star is over"):
            hub.reduce(np.ones((1, 96), np.float32))
