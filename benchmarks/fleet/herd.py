"""All devices at once: connecting, connecting again after a restart, and being idle."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.crowd import Crowd
from benchmarks.fleet.load import Load
from benchmarks.fleet.serve import Figures, Served

PREPARE = 2.0  # seconds until all processes have made their devices
SETTLE = 1.0  # seconds after the last Welcome, before idle devices count
DOWN = 1.0  # seconds that all are connected before their server is killed


@dataclass(frozen=True, slots=True)
class Guarded:
    """How a server and its devices know each other. options: of `splitrt serve`."""

    name: str
    options: tuple[str, ...] = ()
    ca: str | None = None
    tokens: str | None = None


@dataclass(frozen=True, slots=True)
class Herd:
    """Devices that connect at once. Seconds until half of them and until all had their Welcome.

    attempts: connections that were begun, a device.  server_ms: CPU of the server, a device; of
    that and of the devices' own processes a connection costs clients_ms.
    """

    guard: str
    devices: int
    half: float
    all: float
    attempts: float
    server_ms: float
    clients_ms: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Connected devices that only ping. server_us: CPU a device a second.  kib: memory a device."""

    devices: int
    connections: int
    cores: float
    server_us: float
    kib: float
    clients: float


@dataclass(frozen=True, slots=True)
class Again:
    """A server that was killed under its devices. Seconds from when it listens again until half and
    all are back; down: seconds that it was away."""

    devices: int
    down: float
    half: float
    all: float
    attempts: float


def herd(folder: str, plan: str, guard: Guarded, devices: int, crowd: Crowd, core: int) -> Herd:
    """On a fresh server."""
    with Served(folder, cores=(core,), options=guard.options) as server:
        before, connect = server.figures(), time.monotonic() + PREPARE
        after: list[Figures] = []

        def watch(load: Load) -> None:
            time.sleep(max(0.0, load.begin - time.monotonic()))
            after.append(server.figures())

        load = Load(
            folder, plan, (server.address,), devices, connect + _room(devices), 0.5, warm=0.5,
            rate=0, connect=connect, ca=guard.ca, tokens=guard.tokens,
        )  # fmt: skip
        seen = crowd.drive(load, meanwhile=watch)
    half, last = arrived([at for one in seen.counts for _, at in one.welcome], devices, connect)
    return Herd(
        guard=guard.name,
        devices=devices,
        half=half,
        all=last,
        attempts=sum(one.attempts for one in seen.counts) / devices,
        server_ms=1000 * (after[0].cpu - before.cpu) / devices,
        clients_ms=1000 * sum(seen.before) / devices,
    )


def idle(
    folder: str, plan: str, counts: Sequence[int], crowd: Crowd, core: int, seconds: float
) -> list[Idle]:
    """So many devices on a server of their own each time."""
    found = []
    for devices in counts:
        with Served(folder, cores=(core,)) as server:
            figures, connect = [server.figures()], time.monotonic() + PREPARE

            def watch(load: Load, server: Served = server, figures=figures) -> None:
                for moment in (load.begin + load.warm, load.end):
                    time.sleep(max(0.0, moment - time.monotonic()))
                    figures.append(server.figures())

            load = Load(
                folder, plan, (server.address,), devices, connect + _room(devices), seconds,
                warm=SETTLE, rate=0, connect=connect,
            )  # fmt: skip
            seen = crowd.drive(load, meanwhile=watch)
        first, begun, ended = figures
        cpu = ended.cpu - begun.cpu
        found.append(
            Idle(
                devices=devices,
                connections=ended.descriptors - first.descriptors,
                cores=cpu / seconds,
                server_us=1e6 * cpu / seconds / devices,
                kib=(ended.resident - first.resident) / 1024 / devices,
                clients=max(seen.cores),
            )
        )
    return found


def again(folder: str, plan: str, devices: int, crowd: Crowd, core: int, seconds: float) -> Again:
    """The server is killed, and started on its port at once."""
    times: list[float] = []
    with ExitStack() as stack:
        server = stack.enter_context(Served(folder, cores=(core,)))

        def kill(load: Load) -> None:
            time.sleep(max(0.0, load.begin + DOWN - time.monotonic()))
            times.append(time.monotonic())
            server.kill()
            server.start()
            times.append(time.monotonic())

        connect = time.monotonic() + PREPARE
        load = Load(
            folder, plan, (server.address,), devices, connect + _room(devices), seconds,
            warm=DOWN, rate=0, connect=connect,
        )  # fmt: skip
        seen = crowd.drive(load, meanwhile=kill)
    killed, listening = times
    back = [at for one in seen.counts for _, at in one.welcome if at > killed]
    half, last = arrived(back, devices, listening)
    attempts = sum(one.attempts for one in seen.counts) / devices - 1
    return Again(devices, listening - killed, half, last, attempts)


def arrived(times: Sequence[float], devices: int, since: float) -> tuple[float, float]:
    """Seconds until half and until all of them were there; infinite if they were not."""
    ordered = sorted(times)[:devices] + [float("inf")] * (devices - len(times))
    return statistics.median_low(ordered) - since, ordered[-1] - since


def _room(devices: int) -> float:
    """Seconds in which so many should have connected, and more."""
    return 3.0 + devices / 200


def guards(folder: Path, devices: int, known: int) -> list[Guarded]:
    """Plain; TLS; TLS with tokens of so many devices; TLS with those and many others' tokens."""
    cert, key = certified(folder)
    tls = ("--tls-cert", cert, "--tls-key", key)
    found = [Guarded("plain"), Guarded("TLS", tls, cert)]
    for count in (devices, known):
        path = folder / f"tokens-{count}"
        path.write_text("".join(f"d{n}:{secrets.token_hex(16)}\n" for n in range(count)))
        options = (*tls, "--tokens", str(path))
        found.append(Guarded(f"TLS, {count:,} tokens", options, cert, str(path)))
    return found


def certified(folder: Path) -> tuple[str, str]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key: PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fleet")])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
    certificate = builder.sign(secret, hashes.SHA256())
    cert, key = folder / "fleet.crt", folder / "fleet.key"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, form, none))
    return str(cert), str(key)
