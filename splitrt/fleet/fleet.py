"""A fleet's life: Ray is started or joined, replicas are placed, the door tells where they are."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported: nothing is reported home

import ray
from ray import serve
from ray.exceptions import RayError

from splitrt.cloud import Guard, Seen
from splitrt.core.language import Language, is_language
from splitrt.core.manifest import Manifest
from splitrt.core.tls import loopback
from splitrt.errors import LinkError, SplitrtError
from splitrt.fleet import ingress
from splitrt.fleet.book import BEAT, ended, here, opened
from splitrt.fleet.door import Door
from splitrt.fleet.replica import Replica
from splitrt.fleet.scale import Scale, wanted
from splitrt.wire import fleet_pb2 as wire

logger = logging.getLogger(__name__)

LOCAL = "local"  # a Ray of its own, on this machine, which ends with it
STORE = 80 << 20  # bytes of Ray's object store, which is hardly used
START = 180.0  # seconds until all replicas serve
PATIENCE = 5.0  # seconds for the book
MARGIN = 10.0  # seconds beyond the grace, before Ray kills a replica


@dataclass(frozen=True, slots=True)
class Place:
    """Where the fleet runs, and is reached.

    ray: a cluster's address, `auto` for the one on this machine; `local` starts one.  port: where
    devices ask for the replicas; 0 for a free one.  stock: the port of Ray's gRPC ingress, on every
    address of each node, for stock clients; None: there is none.
    """

    ray: str = LOCAL
    port: int = 50700
    stock: int | None = None


class Fleet:
    """Replicas of one model directory on a Ray cluster, until closed.

        with Fleet("models/cifar10-resnet", {"host": "127.0.0.1"}, scale=Scale(1, 4)) as fleet:
            Edge("models/cifar10-resnet", cloud=fleet.address)

    options: of `Server`, without port; the files they name must lie at the same path on each node.
    watch: let replicas take up changed files. SplitrtError if they do not come to serve.
    """

    def __init__(
        self,
        folder: str | Path,
        options: Mapping[str, Any],
        *,
        place: Place = Place(),
        scale: Scale = Scale(),
        watch: bool = False,
    ) -> None:
        folder = Path(folder).resolve()
        options = absolute({"host": "127.0.0.1", "grace": 5.0, **options})
        guard: Guard = options.get("guard", Guard())
        guard.check(options["host"])
        _shared(options, place.stock, guard)
        self.name = f"splitrt-{_model(folder).name}"
        self._stock = place.stock
        self._over, self._peers = threading.Event(), list[wire.Replica]()
        with ExitStack() as life:
            nodes, session = _joined(place.ray, life)
            if nodes > 1 and loopback(options["host"]):
                raise SplitrtError(
                    f"replicas on {nodes} machines at {options['host']}\n"
                    "help: --host 0.0.0.0 binds each to its own machine's address"
                )
            _begun(place)
            if self._app() is not None:
                raise SplitrtError(
                    f"{self.name} runs on that cluster already\n"
                    "help: end it, or give the model another name"
                )
            self._book = opened(self.name)
            life.callback(ended, self.name)
            told = str(folder), options, self.name, session, watch
            self._deploy(told, scale, life)
            if place.stock is not None:
                _proved(place.stock)
            self._refresh()
            self._door = life.enter_context(
                Door(lambda: self._peers, host=options["host"], port=place.port, guard=guard)
            )
            reading = threading.Thread(target=self._read, name="fleet", daemon=True)
            reading.start()
            life.callback(reading.join)
            life.callback(self._over.set)
            self._life = life.pop_all()

    @property
    def address(self) -> str:
        """fleet://host:port, as an Edge wants it."""
        return f"fleet://{here(self._door.host)}:{self._door.port}"

    @property
    def stock(self) -> str | None:
        """host:port of Ray's gRPC ingress on this machine; None if there is none."""
        return None if self._stock is None else f"127.0.0.1:{self._stock}"

    @property
    def replicas(self) -> list[str]:
        """host:port of those that serve now."""
        return [one.address for one in self._peers]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Until somebody calls `stop` or `close`."""
        while not self._over.wait(1.0):
            pass

    def stop(self) -> None:
        """Let `wait` return; safe in a signal handler."""
        self._over.set()

    def close(self) -> None:
        """Drain and end the replicas, and Ray if it was started here; other clusters go on."""
        self._life.close()

    def reload_soon(self) -> None:
        """Let every replica take up changed files, in the background; their logs say how."""
        threading.Thread(target=self._renew, name="renew", daemon=True).start()

    def _renew(self) -> None:
        try:
            self._door.renew()
            ray.get(self._book.renew.remote(), timeout=PATIENCE)
        except (SplitrtError, RayError) as error:
            logger.warning("not reloaded, the old goes on: %s", error)

    def _deploy(self, told: tuple[Any, ...], scale: Scale, life: ExitStack) -> None:
        """Have as many as wanted serve. told: what each is."""
        folder, options, *_ = told
        made = serve.deployment(Replica).options(**deployment(options, scale))
        target = serve.RunTarget(made.bind(*told), name=self.name, route_prefix=f"/{self.name}")
        life.callback(_deleted, self.name)
        serve.run_many([target], wait_for_applications_running=False)
        until = time.monotonic() + START
        while (app := self._app()) is None or app.status != "RUNNING":
            if time.monotonic() > until or (app and app.status == "DEPLOY_FAILED"):
                raise SplitrtError(f"the replicas of {folder} do not start: {_told(app)}")
            time.sleep(BEAT / 10)

    def _app(self) -> Any:
        """What Ray says of it; None if it does not know it."""
        return serve.status().applications.get(self.name)

    def _read(self) -> None:
        """Ask the book, every beat, for the door."""
        while not self._over.wait(BEAT):
            try:
                self._refresh()
            except RayError as error:
                logger.warning("the book does not answer: %s", type(error).__name__)
                with contextlib.suppress(RayError):  # nor does Ray: at the next beat, again
                    self._book = opened(self.name)

    def _refresh(self) -> None:
        entries = ray.get(self._book.read.remote(), timeout=PATIENCE)
        self._peers = [wire.Replica.FromString(entry) for entry in entries]


def deployment(options: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """What Ray Serve is told of a replica."""
    gpus = 1 if str(options.get("device", "cpu")).startswith("cuda") else 0
    told: dict[str, Any] = {
        "name": "Replica",
        "ray_actor_options": {"num_cpus": options.get("threads") or 1, "num_gpus": gpus},
        "max_ongoing_requests": 1000,  # the server itself refuses what is too much
        "graceful_shutdown_timeout_s": options["grace"] + MARGIN,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 10.0,
    }
    if scale.least == scale.most:
        return {**told, "num_replicas": scale.least}
    how = {
        "min_replicas": scale.least,
        "max_replicas": scale.most,
        "target_ongoing_requests": scale.busy,
        "look_back_period_s": scale.up,
        "upscale_delay_s": scale.up,
        "downscale_delay_s": scale.down,
        "policy": {"policy_function": f"{wanted.__module__}:{wanted.__name__}"},
    }
    return {**told, "autoscaling_config": how}


def absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with whole paths: a replica starts in another folder."""
    found = dict(options)
    found["tails"] = [Path(one).resolve() for one in options.get("tails", ())]
    guard: Guard = options.get("guard", Guard())
    named = {one.name: getattr(guard, one.name) for one in fields(guard)}
    paths = {
        name: Path(one).resolve() for name, one in named.items() if isinstance(one, str | Path)
    }
    found["guard"] = replace(guard, **paths)
    return found


def _shared(options: Mapping[str, Any], stock: int | None, guard: Guard) -> None:
    """SplitrtError for what several replicas of one machine, or Ray's ingress, cannot do."""
    if options.get("seen", Seen()).metrics:
        raise SplitrtError(
            "replicas of one machine cannot share a port for metrics\n"
            "help: --metrics-port 0; each says in its log where"
        )
    if stock is not None and guard.client_ca is not None:
        raise SplitrtError(
            "stock clients come through Ray, which shows no certificates\n"
            "help: leave out --stock-port, or --client-ca"
        )
    if stock is not None and guard.tokens is not None and not guard.insecure_tokens:
        raise SplitrtError(
            "stock clients' tokens would travel unencrypted: Ray's ingress has no TLS\n"
            "help: leave out --stock-port, or --insecure-tokens inside a tunnel"
        )


def _model(folder: Path) -> Manifest | Language:
    return Language.load(folder) if is_language(folder) else Manifest.load(folder)


def _joined(address: str, life: ExitStack) -> tuple[int, str]:
    """Connect to a cluster, or start one that ends with `life`.

    How many machines it has, and the folder for what belongs to its life.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address == LOCAL:
        temporary = tempfile.mkdtemp(prefix="splitrt-ray-")
        life.callback(shutil.rmtree, temporary, ignore_errors=True)
        quiet |= {"include_dashboard": False, "object_store_memory": STORE, "_temp_dir": temporary}
    life.callback(ray.shutdown)
    try:
        context = ray.init(address, **quiet)
    except Exception as error:  # Ray has no narrower one for a node that does not start
        raise LinkError(
            f"no Ray at {address}: {error}\nhelp: `ray start --head` there, or --ray-address "
            "local; for a cluster that wants a token, RAY_AUTH_MODE=token and Ray's token file"
        ) from error
    return sum(node["Alive"] for node in ray.nodes()), context.address_info["session_dir"]


def _begun(place: Place) -> None:
    """Start Serve, unless it runs there; its proxies only for stock clients."""
    ways: dict[str, Any] = {"proxy_location": "Disabled"}
    if place.stock is not None:
        functions = [ingress.IMPORTED]
        grpc_options = {"port": place.stock, "grpc_servicer_functions": functions}
        ways = {"grpc_options": {**grpc_options, "enable_reflection": False}}
    serve.start(**ways, logging_config={"log_level": "WARNING", "enable_access_log": False})


def _proved(port: int) -> None:
    """LinkError unless a stock client is answered there."""
    service, _ = ingress.methods()
    until = time.monotonic() + PATIENCE
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        live = channel.unary_unary(f"/{service}/ServerLive")
        try:
            live(b"", timeout=until - time.monotonic(), wait_for_ready=True)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            if code == grpc.StatusCode.UNAUTHENTICATED:  # it is there, and wants a token
                return
            raise LinkError(
                f"stock clients are not answered at port {port}: {code}\n"
                "help: if Serve ran on the cluster before, `serve shutdown` there, then again"
            ) from error


def _deleted(name: str) -> None:
    """Drain and end the replicas."""
    with contextlib.suppress(RayError):
        serve.delete(name)


def _told(app: Any) -> str:
    """What the last replica that did not start said itself, with its own help if it had one."""
    deployments = [] if app is None else app.deployments.values()
    text = "\n".join(one.message for one in deployments)
    *_, why, last = ["", "no reason is known", *filter(str.strip, text.splitlines())]
    if last.startswith("help: "):
        return f"{why}\n{last}"
    return f"{last}\nhelp: what it needs must be free on the cluster; Ray's logs say more"
