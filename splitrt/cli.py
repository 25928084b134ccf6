"""The verbs: demo, cuts, split, score, serve, edge, relay, profile, plan, check; and cli_*.py."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitrt import cli_chat, cli_daemon, cli_demo, cli_fleet, cli_frigate, cli_star, shown
from splitrt.errors import SplitrtError

if TYPE_CHECKING:
    from splitrt.core.manifest import Similar

app = typer.Typer(
    name="splitrt",
    help="Split inference: a model's head on the device, its tail on a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

NEEDS = {
    "torch": "cloud", "safetensors": "cloud", "grpc_health": "cloud",
    "grpc_reflection": "cloud", "prometheus_client": "daemon",
    "matplotlib": "train", "onnx": "train", "tomli_w": "train",
    "tokenizers": "chat", "jinja2": "chat", "starlette": "chat", "uvicorn": "chat",
    "zmq": "frigate", "ray": "ray",
}  # fmt: skip

LANGUAGE = {"cut", "exits", "weights", "resume", "codec", "longest"}  # options of `split`
STAR = {"star", "shares", "weights", "longest"}  # its options for several devices
EXAMPLES = {"--shape": "1,3,224,224", "--threads": "1,2,4", "--exits": "4,8"}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Folder = Annotated[Path, typer.Argument(help="A model directory.", metavar="DIR")]
Tails = Annotated[
    list[Path] | None, typer.Option("--tail", help="Another tail of the same head; several may be.")
]
Whole = Annotated[
    str,
    typer.Argument(help="Where the model is: a callable returning it.", metavar="MODULE:CALLABLE"),
]
Shape = Annotated[str, typer.Option(help="What the model takes, with batch; the largest picture.")]
Dtype = Annotated[str, typer.Option(help="float32 or int64.")]
Smallest = Annotated[
    str | None, typer.Option(help="H,W of the smallest picture, if they change their size.")
]
Step = Annotated[int, typer.Option(help="Their height and width are multiples of it.")]
Fit = Annotated[
    str, typer.Option(help="Pictures of other sizes: exact (an error), letterbox, stretch.")
]
Beside = Annotated[
    list[str] | None,
    typer.Option(help="An input of the tail alone: NAME:DTYPE:SHAPE, without batch."),
]


Trace = Annotated[
    bool,
    typer.Option("--trace", help="Spans to OpenTelemetry, as its OTEL_* variables say."),
]
Picture = Annotated[
    str | None, typer.Option(help="The --side that is a picture's height and width as it came.")
]


app.command()(cli_demo.demo)


@app.command()
def cuts(
    whole: Whole,
    shape: Shape = "1,3,224,224",
    dtype: Dtype = "float32",
    smallest: Smallest = None,
    step: Step = 32,
    side: Beside = None,
    as_json: Json = False,
) -> None:
    """List the places where a model may be cut: one tensor crosses, and perhaps side data."""
    from splitrt.train.graph import trace
    from splitrt.train.whole import load

    takes = _takes(shape, dtype, (smallest, step, "exact"), side)
    found = trace(load(whole), takes.example(), takes.free).cuts
    if as_json:
        keys = ("name", "shape", "bytes", "head_macs", "head_params")
        shown.as_json({"cuts": [{key: getattr(place, key) for key in keys} for place in found]})
        return
    shown.cuts(str(whole), found)


@app.command()
def split(
    context: typer.Context,
    whole: Annotated[
        str,
        typer.Argument(
            help="A callable that returns the model, or the folder of a language model's "
            "checkpoint.",
            metavar="MODULE:CALLABLE | DIR",
        ),
    ],
    to: Annotated[Path, typer.Option(help="The model directory to write.")],
    after: Annotated[
        str | None, typer.Option(help="The module after which to cut (see `cuts`).")
    ] = None,
    shape: Shape = "1,3,224,224",
    dtype: Dtype = "float32",
    smallest: Smallest = None,
    step: Step = 32,
    fit: Fit = "exact",
    side: Beside = None,
    picture_size: Picture = None,
    channels: Annotated[int | None, typer.Option(help="Put in a bottleneck this wide.")] = None,
    widths: Annotated[
        str | None, typer.Option(help="A small head of several widths instead: 6,12,24 channels.")
    ] = None,
    frames: Annotated[Path | None, typer.Option(help="Pictures: a folder or an .npz.")] = None,
    epochs: Annotated[int, typer.Option(help="Of each of the two stages of distillation.")] = 10,
    pixels: Annotated[
        str, typer.Option(help="imagenet, unit or none: from a picture to the model's input.")
    ] = "imagenet",
    seed: int = 0,
    cut: Annotated[int | None, typer.Option(help="Language: layers on the device.")] = None,
    exits: Annotated[
        str | None, typer.Option(help="Language: layers with an exit, 4,8; one is at the cut.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Language: of the device's part, int4, int8, fp16 or fp32.")
    ] = "int4",
    resume: Annotated[
        str, typer.Option(help="Language: what devices may send, hidden, tokens or both.")
    ] = "hidden",
    codec: Annotated[str, typer.Option(help="Language: of the rows, q8, q4, f16 or f32.")] = "q8",
    longest: Annotated[
        int | None, typer.Option(help="Language: positions that the device has room for.")
    ] = None,
    star: Annotated[
        int | None,
        typer.Option(help="Language: of so many devices each gets a part of all layers."),
    ] = None,
    shares: Annotated[
        str | None, typer.Option(help="With --star: their speeds, the hub's first, 2,1,1.")
    ] = None,
) -> None:
    """Cut a model, distil a bottleneck if channels are given, write the model directory.

    Without --channels or --widths the cut is exact: plan f32 answers as the whole model does. A
    distillation that was interrupted goes on where it was when the same command is given again.
    A language model's checkpoint (config.json, safetensors, tokenizer.json) is cut between layers,
    or with --star sliced: a folder for each of the devices, hub, spoke-1, ...
    """
    _of_one_kind(context, Path(whole).is_dir())
    if star is not None:
        _sliced(whole, to, _speeds(star, shares), weights, longest)
        return
    if Path(whole).is_dir():
        from splitrt.train.divide import divide

        made = divide(
            whole,
            to,
            cut=cut or 0,
            exits=None if exits is None else _shape(exits, "--exits"),
            weights=weights,
            resume=tuple(resume.split(",")),
            codec=codec,
            longest=longest,
        )
        layers = f"{made.cut} of {made.shape.layers} layers on the device in {made.weights}"
        there = ", ".join(str(one.layer) for one in made.exits)
        print(f"{to}: {layers}, exits after {there}; devices send {' or '.join(made.resume)}")
        return
    from splitrt.train.make import Narrow, make

    manifest = make(
        whole,
        after=after or "",
        to=to,
        takes=_takes(shape, dtype, (smallest, step, fit), side, picture_size),
        bottleneck=Narrow(channels, _shape(widths, "--widths") if widths else (), epochs, seed),
        frames=frames,
        pixels=pixels,
    )
    plans = ", ".join(plan.name for plan in manifest.plans)
    print(f"{to}: cut after {manifest.cut.after}, {_crossing(manifest)} cross; plans {plans}")


@app.command()
def score(
    folder: Folder,
    data: Annotated[
        Path,
        typer.Option("--data", "--frames", help="Labelled pictures: class folders, or an .npz."),
    ],
    limit: Annotated[int | None, typer.Option(help="Take only so many, evenly.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help="Only these plans.")] = None,
    threads: Annotated[int, typer.Option(help="Of each half.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Draw it too: a .png or .svg file.")] = None,
    as_json: Json = False,
) -> None:
    """Accuracy, bytes and milliseconds of every plan, beside the whole model, JPEG and WebP."""
    from splitrt.core.manifest import Manifest
    from splitrt.train import read
    from splitrt.train import score as measure

    if plot is not None:
        from splitrt.train.plot import check, draw

        check(plot)  # before the work, not after it
    height, width = Manifest.load(folder).input.shape[:2]
    frames = read(data, height=height, width=width, limit=limit)
    found = measure(folder, frames, plans=plan or None, threads=threads)
    if plot is not None:
        draw(found, plot)
    if as_json:
        shown.as_json(found.as_dict())
    else:
        shown.score(found)


@app.command()
def serve(
    context: typer.Context,
    folder: Folder,
    port: int = 50700,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    tail: Tails = None,
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
    frames_per_second: Annotated[float | None, typer.Option(help="Of each device.")] = None,
    bytes_per_second: Annotated[float | None, typer.Option(help="Of each device.")] = None,
    grace: Annotated[float, typer.Option(help="Seconds for what is in flight at the end.")] = 5.0,
    max_age: Annotated[
        float | None,
        typer.Option(help="Seconds after which a device is sent on to another server."),
    ] = None,
    watch: Annotated[bool, typer.Option(help="Take up changed files (so does SIGHUP).")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Devices must show a certificate of this CA.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Devices must bring a token of this file of name:token.")
    ] = None,
    insecure_tokens: Annotated[
        bool, typer.Option("--insecure-tokens", help="Tokens without TLS, inside a tunnel.")
    ] = False,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Positions of all sessions of a language model.")
    ] = None,
    ttl: Annotated[float, typer.Option(help="Seconds a session is kept without a call.")] = 300.0,
    metrics_port: Annotated[
        int | None, typer.Option(help="For Prometheus and probes; 0 takes a free one.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other machines read them: figures, no devices' names.")
    ] = "127.0.0.1",
    reflection: Annotated[
        bool, typer.Option("--reflection", help="Tell clients such as grpcurl what there is.")
    ] = False,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Adapt the exits of devices that ask for it.")
    ] = False,
    trace: Trace = False,
    ray: cli_fleet.Ray = False,
    ray_address: cli_fleet.Address = "local",
    replicas: cli_fleet.Replicas = "2",
    busy: cli_fleet.Busy = 8.0,
    stock_port: cli_fleet.Stock = None,
) -> None:
    """Run the server's half until it is interrupted; then answer what is in flight and end."""
    import logging

    # While it loads, too: a container's first process has to handle it, or the kernel drops it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from splitrt.cloud import Guard, Quota, Room, Seen, Server
    from splitrt.core.trace import exporting

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    options: dict[str, Any] = {
        "host": host,
        "tails": tail or (),
        "device": device,
        "threads": threads,
        "guard": Guard(tls_cert, tls_key, client_ca, tokens, insecure_tokens),
        "quota": Quota(frames_per_second, bytes_per_second),
        "grace": grace,
        "max_age": max_age,
        "room": Room(kv_tokens, ttl),
        "seen": Seen(metrics_port, reflection, metrics_host, trace),
        "adapt": adapt,
    }
    if ray:
        cli_fleet.serve(folder, options, (ray_address, port, stock_port), (replicas, busy), watch)
        return
    cli_fleet.alone(context)
    with exporting("splitrt-serve", trace), Server(folder, port=port, **options) as server:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: server.stop())
        signal.signal(signal.SIGHUP, lambda *_: server.reload_soon())
        if watch:
            server.watch()
        for line in shown.serving(str(folder), server):
            print(line, flush=True)
        server.wait()


@app.command()
def edge(
    folder: Folder,
    source: Annotated[
        str,
        typer.Option(
            help="A folder, a picture, a video, pan:photo.jpg, /dev/video0, rtsp://…, csi://0."
        ),
    ],
    cloud: cli_chat.Cloud = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds a frame may take.")] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            help="Pin a plan; several go in turn. auto: the controller, without --deadline a gate."
        ),
    ] = None,
    bytes_per_second: Annotated[
        float | None, typer.Option(help="With --deadline: send no more than this on average.")
    ] = None,
    repeat: Annotated[int, typer.Option(help="Show a folder's pictures so many times.")] = 1,
    inflight: Annotated[int, typer.Option(help="Frames between capture and result.")] = 4,
    tail: Tails = None,
    filter: Annotated[bool, typer.Option(help="Drop frames with nothing of interest.")] = False,
    temporal: Annotated[bool, typer.Option(help="Send differences: for a still camera.")] = False,
    keyframe: Annotated[
        int, typer.Option(help="With --temporal: a whole frame every so many.")
    ] = 30,
    similar: Annotated[
        str | None,
        typer.Option(help="Re-use an answer up to this change, in grey levels; or `model`."),
    ] = None,
    interval: Annotated[int, typer.Option(help="With --similar: ask one frame in so many.")] = 30,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Let the server adapt the exit to what is seen.")
    ] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Encrypt; who vouches for the server, PEM.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="This device's certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="This device's token; or set SPLITRT_TOKEN.")
    ] = None,
    insecure_tokens: Annotated[
        bool, typer.Option("--insecure-tokens", help="A token without TLS, inside a tunnel.")
    ] = False,
    standin: Annotated[
        bool,
        typer.Option(
            help="Without an exit, keep the tail here to answer for a server that does not."
        ),
    ] = True,
    threads: Annotated[int | None, typer.Option(help="Of ONNX Runtime.")] = None,
    trace: Trace = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run the device's half over pictures or a camera; a line for every frame."""
    from splitrt.core.trace import exporting
    from splitrt.edge.edge import Edge
    from splitrt.edge.pilot import Caps
    from splitrt.edge.source import source as opened
    from splitrt.edge.trace import traced
    from splitrt.edge.trust import Trust

    trust = Trust(tls_ca, cert, key, cli_chat.secret(token_file, "SPLITRT_TOKEN"), insecure_tokens)
    with exporting("splitrt-edge", trace):
        for name in plan or ["auto"]:
            pin = None if name == "auto" else name
            with Edge(
                folder,
                cloud=cloud,
                deadline=deadline,
                plan=pin,
                filter=filter,
                tails=tail or (),
                temporal=keyframe if temporal else False,
                similar=_similar(similar, interval),
                adapt=adapt,
                caps=Caps(bytes=bytes_per_second),
                trust=trust,
                standin=standin,
                threads=threads,
            ) as device:
                if trace:
                    traced(device)
                for _ in range(repeat):
                    with opened(source) as frames:
                        for frame, result in device.stream(frames, inflight=inflight):
                            size = frame.image.shape[0], frame.image.shape[1]
                            answer, further = shown.seen(device.manifest, result, size)
                            line = shown.json_line if as_json else shown.line
                            print(line(frame.name, name, answer, result, further), flush=True)


app.command()(cli_chat.exits)
app.command()(cli_chat.chat)
app.command()(cli_chat.api)
app.command()(cli_star.star)
app.command()(cli_frigate.frigate)
app.command()(cli_daemon.daemon)


@app.command()
def relay(
    to: Annotated[str, typer.Option(help="The server's host:port.", metavar="HOST:PORT")],
    link: Annotated[str, typer.Option(help="lte-fair, umts, wifi, ... or a rate: 4mbps.")] = "wifi",
    trace: Annotated[
        Path | None, typer.Option(help="A recorded uplink instead: seconds and Mbit/s a line.")
    ] = None,
    rtt: Annotated[float | None, typer.Option(help="Round trip in ms; else the link's.")] = None,
    jitter: Annotated[float, typer.Option(help="Milliseconds on top of it, 0 to so many.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the link's rates.")] = 0,
    port: int = 50600,
    verbose: Annotated[bool, typer.Option(help="A line a second.")] = False,
) -> None:
    """Put a bad link between device and server: `edge --cloud` takes its address."""
    from splitrt.core import links
    from splitrt.relay import Relay, narrate

    kind = None if trace else links.link(link)
    shape = links.read(trace) if kind is None else links.generate(kind, links.LAP, seed)
    seconds = shape.rtt if rtt is None else rtt / 1000
    over = threading.Event()
    with Relay(to, trace=shape, rtt=seconds, jitter=jitter / 1000, port=port) as running:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: over.set())
        there = f"{shape.name} to {to} at {running.address}"
        print(f"{there}, round trip {1000 * seconds:.0f} ms", flush=True)
        if verbose:
            narrate(running, over)
        while not over.wait(1.0):
            pass


@app.command()
def profile(
    folder: Folder,
    to: Annotated[Path | None, typer.Option(help="Write the profile to this .toml file.")] = None,
    threads: Annotated[str, typer.Option(help="Numbers to try, such as 1,2,4.")] = "",
    rounds: Annotated[int, typer.Option(help="Of each part, after warm-up.")] = 50,
    as_json: Json = False,
) -> None:
    """Measure this device with a model: ms of heads, exits, tail and codecs, memory, watts."""
    from splitrt.edge.measure import measure

    found = measure(folder, threads=_shape(threads, "--threads") if threads else (), rounds=rounds)
    if to is not None:
        found.save(to)
    if as_json:
        shown.as_json(found.model_dump(mode="json", exclude_none=True))
    else:
        shown.profile(found)
        if to is not None:
            print(f"{to}: {len(found.measured)} timings; `splitrt plan {folder} --device {to}`")


@app.command()
def plan(
    folder: Folder,
    device: Annotated[str, typer.Option(help="A shipped profile, such as pi-4, or a .toml file.")],
    link: Annotated[
        str, typer.Option(help="A kind of link (lte-fair), a rate (4mbps), a trace (a .csv file).")
    ],
    deadline: Annotated[float | None, typer.Option(help="Seconds a frame may take.")] = None,
    server_ms: Annotated[float, typer.Option(help="From a message's arrival to its answer.")] = 5,
    seed: Annotated[int, typer.Option(help="Of a generated link.")] = 0,
    as_json: Json = False,
) -> None:
    """What every plan would cost on a device and a link, and which would be best there."""
    from splitrt.core import links
    from splitrt.core.forecast import outlook
    from splitrt.core.manifest import Manifest
    from splitrt.core.profile import Profile

    found = outlook(
        Manifest.load(folder),
        Profile.load(device),
        links.find(link, seed=seed),
        deadline=deadline,
        server=server_ms / 1000,
    )
    if as_json:
        shown.as_json(found.as_dict())
    else:
        shown.outlook(found, f"{folder} on {device} over {link}")


@app.command()
def check(folder: Folder) -> None:
    """Prove a model directory: hashes, names, sizes; the head runs; the halves fit."""
    from splitrt.check import check as prove

    for line in prove(folder):
        print(line)


def main() -> None:
    """Run a verb; an error of splitrt's own tree is a message, not a traceback."""
    try:
        app()
    except SplitrtError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name not in NEEDS:
            raise
        sys.exit(
            f"error: this needs {error.name}\nhelp: pip install 'splitrt[{NEEDS[error.name]}]'"
        )


def _similar(text: str | None, interval: int) -> Similar | bool:
    """--similar X, --similar model, or neither."""
    from splitrt.core.manifest import Similar

    if text is None or text == "model":
        return text is not None
    try:
        return Similar(threshold=float(text), interval=interval)
    except ValueError:  # pydantic's, too
        raise SplitrtError(
            f"similar {text!r}, interval {interval}\n"
            "help: grey levels from 0 on, or `model`; an interval of 1 or more"
        ) from None


def _sliced(
    whole: str, to: Path, shares: tuple[float, ...], weights: str, longest: int | None
) -> None:
    from splitrt.train.shards import shard

    made = shard(whole, to, shares=shares, weights=weights, longest=longest)
    print(f"{to}: {made.shape.layers} layers of {made.name} in {made.weights}")
    for one in made.devices:
        size = sum((to / one.folder / name).stat().st_size for name in one.files) / 1e6
        print(
            f"{one.folder}: {one.asking} of {made.shape.heads} heads, "
            f"{one.inner} of {made.shape.inner} feed-forward columns, {size:.1f} MB"
        )


def _speeds(star: int, shares: str | None) -> tuple[float, ...]:
    """--star N, and --shares if they are given."""
    if star < 1:
        raise typer.BadParameter(f"{star} devices; 1 or more", param_hint="--star")
    if shares is None:
        return (1.0,) * star
    try:
        found = tuple(float(one) for one in shares.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{shares!r} are no shares; write 2,1,1", param_hint="--shares"
        ) from None
    if len(found) != star:
        raise SplitrtError(
            f"{len(found)} shares for {star} devices\nhelp: one each, the hub's first"
        )
    return found


def _of_one_kind(context: typer.Context, language: bool) -> None:
    """Options of `split` that are for the other kind of model are an error; so is no cut."""
    kinds = "a language model's checkpoint", "a model of MODULE:CALLABLE"
    here, there = kinds if language else kinds[::-1]
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    for name in sorted(given - {"whole", "to"}):
        if (name in LANGUAGE | STAR) != language:
            option = f"--{name.replace('_', '-')}"
            raise SplitrtError(
                f"{option} is for {there}\nhelp: {context.params['whole']} is {here}"
            )
    if language and given & {"star", "shares"}:
        _of_a_star(given)
        return
    needed = "cut" if language else "after"
    if needed not in given:
        places = "a module's name, see `splitrt cuts`"
        if language:
            places = "a number of layers, or --star with a number of devices"
        raise SplitrtError(f"no --{needed}: where to cut {here}\nhelp: give {places}")


def _of_a_star(given: set[str]) -> None:
    """A star is not cut: its server is the other devices."""
    if "star" not in given:
        raise SplitrtError("--shares without --star\nhelp: give --star and the number of devices")
    for name in sorted(given - {"whole", "to"} - STAR):
        raise SplitrtError(f"--{name} with --star\nhelp: every device gets a part of all layers")


def _shape(text: str, option: str = "--shape") -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        wanted = EXAMPLES.get(option, "64,64")
        raise typer.BadParameter(f"{text!r} is no shape; write {wanted}", param_hint=option)
    return shape


def _takes(
    shape: str,
    dtype: str,
    changing: tuple[str | None, int, str],
    side: list[str] | None,
    picture: str | None = None,
) -> Any:
    """The options of `cuts` and `split` that say what a model takes.

    changing: --smallest, --step and --fit.
    """
    from splitrt.core.sizes import Sizes
    from splitrt.train.free import Free
    from splitrt.train.make import Takes, beside

    whole, sizes = _shape(shape), None
    smallest, step, fit = changing
    if smallest is not None:
        low = _shape(smallest, "--smallest")
        sizes = Sizes.between(low, whole[2:], step=step, fit=fit)
    return Takes(whole, dtype, Free(sizes, beside(side or []), picture))


def _crossing(manifest: Any) -> str:
    words = "×".join(map(str, manifest.cut.shape)) + " numbers"
    return words if manifest.sizes is None else f"{words} at most"


if __name__ == "__main__":
    main()
