"""Which trace a call belongs to: by W3C's header, or by the frame's own field, right or wrong."""

from __future__ import annotations

import grpc

from splitrt.cloud import oip
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.cloud.guest import asking, call, jpeg
from tests.collector import collecting, serving
from tests.conftest import pictures

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"


def test_other_calls_bring_their_trace_as_w3c_says(model_dir):
    """A header that is none, or of a trace that nobody records, is no error and no span."""
    manifest = Manifest.load(model_dir)
    picture = [jpeg(pictures(1, seed=4).images[0])]
    headers = [HEADER, HEADER[:-2] + "00", "00-zz-1-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 200]
    with collecting() as pile, serving(model_dir, "--trace", **pile.environ) as address:
        with grpc.insecure_channel(address) as channel:
            for header in headers:
                metadata = [("traceparent", header)]
                raw = channel.unary_unary(frames.INFER)(
                    frames.good(manifest), timeout=60, metadata=metadata
                )
                assert wire.Answer.FromString(raw).status == wire.OK
                request = asking("small", {"image": picture * 2})
                call(channel, "ModelInfer", request, metadata=metadata)
            assert frames.infer(channel, frames.good(manifest)).status == wire.OK
            streamed = channel.stream_stream(f"/{oip.SERVICE}/ModelStreamInfer")
            asked = iter([asking("small", {"image": picture}).SerializeToString()] * 2)
            assert len(list(streamed(asked, metadata=[("traceparent", HEADER)], timeout=60))) == 2
    servers = pile.named("server")
    assert len(servers) == 5 and len(pile.spans) == 15  # a frame, two rows, two requests
    assert {(span.trace, span.parent) for span in servers} == {(TRACE, PARENT)}


def test_a_frame_with_a_wrong_trace_is_refused_and_leaves_no_span(model_dir):
    manifest = Manifest.load(model_dir)
    stored, good = frames.stored(manifest), bytes(range(1, 25))
    wrong = [b"\1", good, good + b"\1\0", bytes(25), good[:16] + bytes(9), b"\xff" * 900]
    with collecting() as pile, serving(model_dir, "--trace", **pile.environ) as address:
        with grpc.insecure_channel(address) as channel:
            for trace in wrong:
                raw = frames.request(manifest, stored, trace=trace)
                answer = frames.infer(channel, raw)
                assert answer.status == wire.INVALID and "trace" in answer.detail
                _, streamed = frames.stream(channel, frames.streamed(raw))
                assert streamed.answer.status == wire.INVALID
            unrecorded = frames.request(manifest, stored, trace=good + b"\xfe")
            assert frames.infer(channel, unrecorded).status == wire.OK
            bad = frames.request(manifest, b"", trace=good + b"\xff")
            assert frames.infer(channel, bad).status == wire.INVALID
    [span] = pile.spans
    assert (span.name, span.trace, span.parent) == ("server", good[:16].hex(), good[16:].hex())
    assert span.error and span.attributes["splitrt.status"] == "INVALID"
