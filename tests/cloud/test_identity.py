"""Who may come in: certificates and tokens, right and wrong, made by the test."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from splitrt import Edge, SplitrtError, Trust
from splitrt.cloud import Guard, Server
from splitrt.cloud.identity import Tokens, host
from splitrt.core.manifest import Manifest
from splitrt.core.tls import loopback
from splitrt.wire import tail_pb2 as wire
from tests.line import Line

DAY = datetime.timedelta(days=1)
TOKEN = "c0ffee" * 8
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, as objects and as PEM files."""

    certificate: x509.Certificate
    secret: ec.EllipticCurvePrivateKey
    cert: Path
    key: Path


def made(
    folder: Path,
    name: str,
    by: Signed | None,
    names: Sequence[x509.GeneralName],
    days: int = 1,
) -> Signed:
    """Signed by an authority, or by itself: then it is one."""
    secret = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(secret if by is None else by.secret, hashes.SHA256())
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Signed(certificate, secret, cert, key)


def device(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(f"splitrt://device/{name}")


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> dict[str, Signed]:
    folder = tmp_path_factory.mktemp("papers")
    ca, other = (made(folder, name, None, []) for name in ("ca", "other"))
    return {
        "ca": ca,
        "other": other,
        "server": made(folder, "server", ca, [LOOPBACK]),
        "right": made(folder, "right", ca, [device("camera-7")]),
        "stranger": made(folder, "stranger", other, [device("camera-7")]),
        "expired": made(folder, "expired", ca, [device("camera-7")], days=-1),
        "two": made(folder, "two", ca, [device("camera-7"), device("camera-8")]),
        "more": made(folder, "more", ca, [device("camera-7"), x509.DNSName("gpu-box")]),
        "dns": made(folder, "dns", ca, [x509.DNSName("splitrt-device-camera-7")]),
        "elsewhere": made(
            folder, "elsewhere", ca, [x509.UniformResourceIdentifier("splitrt://admin/camera-7")]
        ),
        "path": made(folder, "path", ca, [device("camera-7/x")]),
        "none": made(folder, "none", ca, []),
    }


@pytest.fixture(scope="module")
def manifest(model_dir) -> Manifest:
    return Manifest.load(model_dir)


@pytest.fixture(scope="module")
def mutual(model_dir, papers):
    guard = Guard(papers["server"].cert, papers["server"].key, papers["ca"].cert)
    with Server(model_dir, port=0, threads=1, guard=guard) as server:
        yield server


def shown(papers: dict[str, Signed], name: str | None, ca: str = "ca") -> grpc.ChannelCredentials:
    own = (papers[name].key.read_bytes(), papers[name].cert.read_bytes()) if name else ()
    return grpc.ssl_channel_credentials(papers[ca].cert.read_bytes(), *own)


def answered(line: Line) -> bool:
    line.frame(1)
    return line.get().answer.status == wire.OK


def test_a_device_with_the_right_certificate_is_known_by_its_name(mutual, manifest, papers):
    with Line(mutual.address, manifest, credentials=shown(papers, "right")) as line:
        assert answered(line)
        assert [stream.device for stream in mutual._front.streams] == ["camera-7"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (None, grpc.StatusCode.UNAVAILABLE),
        ("stranger", grpc.StatusCode.UNAVAILABLE),
        ("expired", grpc.StatusCode.UNAVAILABLE),
        ("two", grpc.StatusCode.PERMISSION_DENIED),
        ("more", grpc.StatusCode.PERMISSION_DENIED),
        ("dns", grpc.StatusCode.PERMISSION_DENIED),
        ("elsewhere", grpc.StatusCode.PERMISSION_DENIED),
        ("path", grpc.StatusCode.PERMISSION_DENIED),
        ("none", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_another_certificate_does_not_come_in(mutual, manifest, papers, name, code):
    with pytest.raises(grpc.RpcError) as raised:
        Line(mutual.address, manifest, credentials=shown(papers, name))
    assert raised.value.code() == code


def test_a_unary_frame_needs_an_identity_too(mutual, manifest, papers):
    from splitrt.wire.tail_pb2_grpc import TailStub

    with grpc.secure_channel(mutual.address, shown(papers, "two")) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            TailStub(channel).Infer(wire.Request(), timeout=20)
    assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_an_unencrypted_device_does_not_come_in(mutual, manifest):
    with pytest.raises(grpc.RpcError) as raised:
        Line(mutual.address, manifest)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def test_an_edge_with_trust_is_answered_and_without_it_stands_in(mutual, model_dir, papers, image):
    ca, right = papers["ca"].cert, papers["right"]
    trust = Trust(ca, right.cert, right.key)
    with Edge(model_dir, cloud=mutual.address, plan="q8", deadline=20, trust=trust) as edge:
        assert edge(image).where == "cloud"
    for wrong, words in (
        (Trust(), "hung up"),
        (Trust(ca), "hung up"),
        (Trust(ca, papers["stranger"].cert, papers["stranger"].key), "hung up"),
        (Trust(papers["other"].cert, right.cert, right.key), "TLS handshake failed"),
    ):
        with Edge(model_dir, cloud=mutual.address, plan="q8", deadline=3, trust=wrong) as edge:
            result = edge(image)
        assert result.where == "edge" and words in result.reason
    two = Trust(ca, papers["two"].cert, papers["two"].key)
    with Edge(model_dir, cloud=mutual.address, plan="q8", deadline=3, trust=two) as edge:
        assert "only name" in edge(image).reason


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    hashed = hashlib.sha256(b"kept elsewhere, long enough").hexdigest()
    path.write_text(
        f"# who may come in\ncamera-1:{'a' * 40}\n\ncamera-7:{TOKEN}\nporch:sha256:{hashed}\n"
    )
    return path


@pytest.fixture(scope="module")
def tokened(model_dir, tokens):
    with Server(model_dir, port=0, threads=1, guard=Guard(tokens=tokens)) as server:
        yield server


@pytest.mark.parametrize(
    ("token", "name"),
    [("a" * 40, "camera-1"), (TOKEN, "camera-7"), ("kept elsewhere, long enough", "porch")],
)
def test_a_device_is_known_by_its_token(tokened, manifest, token, name):
    bearer = [("authorization", f"Bearer {token}")]
    with Line(tokened.address, manifest, metadata=bearer) as line:
        assert answered(line)
        assert name in [stream.device for stream in tokened._front.streams]


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer " + "b" * 40)],
        [("authorization", "Bearer " + TOKEN[:-1])],
        [("authorization", "Bearer " + TOKEN + "c")],
        [("authorization", "Bearer camera-7:" + TOKEN)],
        [("authorization", "Bearer sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest())],
        [("authorization", "Basic " + TOKEN)],
        [("authorization", TOKEN)],
        [("token", TOKEN)],
        [("authorization", "Bearer " + TOKEN), ("authorization", "Bearer " + "a" * 40)],
    ],
)
def test_without_a_known_token_nobody_comes_in(tokened, manifest, metadata):
    with pytest.raises(grpc.RpcError) as raised:
        Line(tokened.address, manifest, metadata=metadata)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert TOKEN not in raised.value.details()


def test_every_line_is_compared_whoever_asks(tokens, monkeypatch):
    import hmac

    found, seen, true = Tokens(tokens), [], hmac.compare_digest

    def compare(known: bytes, digest: bytes) -> bool:
        seen.append((len(known), len(digest)))
        return true(known, digest)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    names = [found.name(token) for token in (b"a" * 40, TOKEN.encode(), b"", b"x" * 1000)]
    assert names == ["camera-1", "camera-7", None, None]
    assert seen == [(32, 32)] * 12


def test_certificate_and_token_must_be_of_one_device(model_dir, manifest, papers, tokens):
    guard = Guard(papers["server"].cert, papers["server"].key, papers["ca"].cert, tokens)
    with Server(model_dir, port=0, threads=1, guard=guard) as server:
        for token, code in (
            (TOKEN, None),
            ("a" * 40, grpc.StatusCode.PERMISSION_DENIED),
            ("b" * 40, grpc.StatusCode.UNAUTHENTICATED),
        ):
            words = {
                "credentials": shown(papers, "right"),
                "metadata": [("authorization", f"Bearer {token}")],
            }
            if code is None:
                with Line(server.address, manifest, **words) as line:
                    assert answered(line)
                continue
            with pytest.raises(grpc.RpcError) as raised:
                Line(server.address, manifest, **words)
            assert raised.value.code() == code


def test_a_token_that_is_struck_out_is_unknown_after_a_reload(model_dir, manifest, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"one:{TOKEN}\ntwo:{'a' * 40}\n")
    with Server(model_dir, port=0, threads=1, guard=Guard(tokens=path)) as server:
        bearer = [("authorization", f"Bearer {TOKEN}")]
        with Line(server.address, manifest, metadata=bearer) as line:
            assert answered(line)
        path.write_text(f"two:{'a' * 40}\n")
        server.reload()
        with pytest.raises(grpc.RpcError) as raised:
            Line(server.address, manifest, metadata=bearer)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        path.write_text("")
        with pytest.raises(SplitrtError, match="names no device"):
            server.reload()


def test_a_token_does_not_travel_unencrypted_beyond_this_machine(model_dir, tokens, papers):
    with pytest.raises(SplitrtError, match="unencrypted\nhelp:"):
        Server(model_dir, port=0, host="0.0.0.0", guard=Guard(tokens=tokens))
    with pytest.raises(SplitrtError, match="unencrypted\nhelp:"):
        Edge(model_dir, cloud="192.0.2.1:50700", trust=Trust(token=TOKEN))
    Guard(tokens=tokens, insecure_tokens=True).check("0.0.0.0")
    Trust(token=TOKEN, insecure_token=True).check("192.0.2.1:50700")
    Trust(papers["ca"].cert, token=TOKEN).check("192.0.2.1:50700")


def test_a_secret_is_not_printed():
    assert TOKEN not in repr(Trust(token=TOKEN))


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1:50700", True), ("127.9.9.9", True), ("localhost:1", True), ("[::1]:5", True),
        ("::1", True), ("unix:/run/x", True), ("0.0.0.0", False), ("::", False),
        ("gpu-box:50700", False), ("localhost.example.org:1", False), ("10.0.0.1:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)  # fmt: skip
def test_what_is_this_machine(address, own):
    assert loopback(address) is own


def test_a_devices_host_is_read_from_what_grpc_says():
    assert host("ipv4:192.0.2.1:5555") == "192.0.2.1"
    assert host("ipv6:%5B2001:db8::1%5D:5555") == "2001:db8::1"
    assert host("unix:/run/x") == "unix:/run/x"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p, t: Guard(p["server"].cert), "without key"),
        (lambda p, t: Guard(client_ca=p["ca"].cert), "no encryption"),
        (lambda p, t: Guard(p["server"].cert, p["right"].key).credentials(), "no pair"),
        (lambda p, t: Guard(t, t).credentials(), "no pair"),
        (lambda p, t: Guard(p["ca"].cert, p["ca"].key, t).credentials(), "no PEM"),
        (lambda p, t: Trust(cert=p["right"].cert, key=p["right"].key), "no encryption"),
        (lambda p, t: Trust(p["ca"].cert, p["right"].cert), "without key"),
        (lambda p, t: Trust(t).channel("127.0.0.1:1", []), "no PEM"),
        (lambda p, t: Trust(t.with_name("x")).channel("127.0.0.1:1", []), "cannot be read"),
        (lambda p, t: Trust(token=""), "token is empty"),
        (lambda p, t: Trust(token="a\nb"), "token is empty"),
        (lambda p, t: Tokens(p["ca"].cert), "line 1"),
    ],
)
def test_what_is_wrong_with_files_is_said_before_anything_starts(papers, tokens, make, words):
    with pytest.raises(SplitrtError, match=f"(?s){words}.*help:"):
        make(papers, tokens)


@pytest.mark.parametrize(
    "line", ["camera", "camera:short", "../x:" + TOKEN, f"a:{TOKEN}\nb:{TOKEN}", "ü:" + TOKEN]
)
def test_a_tokens_file_that_is_wrong_is_refused_without_its_secrets(tmp_path, line):
    (tmp_path / "tokens").write_text(line)
    with pytest.raises(SplitrtError, match="help:") as raised:
        Tokens(tmp_path / "tokens")
    assert TOKEN not in str(raised.value)


def test_the_command_line_of_both_sides(model_dir, papers, tokens, tmp_path, image):
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "one.png")
    (tmp_path / "token").write_text(TOKEN + "\n")
    splitrt = [sys.executable, "-m", "splitrt.cli"]
    files = {name: (str(papers[name].cert), str(papers[name].key)) for name in papers}
    serve = [*splitrt, "serve", str(model_dir), "--port", "0", "--threads", "1"]
    serve += ["--tls-cert", files["server"][0], "--tls-key", files["server"][1]]
    serve += ["--client-ca", files["ca"][0], "--tokens", str(tokens)]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        edge = [*splitrt, "edge", str(model_dir), "--source", str(tmp_path / "one.png")]
        edge += ["--cloud", address, "--plan", "q8", "--deadline", "20", "--json"]
        edge += ["--tls-ca", files["ca"][0], "--cert", files["right"][0]]
        edge += ["--key", files["right"][1]]
        for words, variable, where in (
            (["--token-file", str(tmp_path / "token")], "", "cloud"),
            ([], TOKEN, "cloud"),
            ([], "", "edge"),
        ):
            environment = {**os.environ, "SPLITRT_TOKEN": variable}
            done = subprocess.run(
                [*edge, *words], capture_output=True, text=True, check=False, env=environment
            )
            assert done.returncode == 0, done.stderr
            assert f'"where": "{where}"' in done.stdout
        assert "a token is needed" in done.stdout
    finally:
        server.terminate()
        assert server.wait(30) == 0
