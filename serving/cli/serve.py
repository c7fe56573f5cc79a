"""`burrstone serve`: start Ray Serve with one engine replica, say how far it is, print the addresses, drain on Ctrl-C."""

import argparse
import contextlib
import functools
import json
import re
import signal
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from burrstone.serving.auth import Authenticator, check_bind, check_tenants, load_keys
from burrstone.serving.cli.flags import add_config_flags, config_from_flags
from burrstone.serving.cli.progress import Progress
from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.edges.http_server import bind
from burrstone.serving.engine.models import ResolvedModel, resolve_model
from burrstone.serving.hardware import detect
from burrstone.serving.launch import Cluster
from burrstone.serving.verdict import Verdict, examine, shown, warning

_POLL_S = 0.25
_EXIT_INTERRUPTED = 130


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP and gRPC",
        description="Serve a model over HTTP and gRPC. Without MODEL the embedded SmolLM2-135M-Instruct is served.",
    )
    add_config_flags(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = config_from_flags(arguments).config
    authenticator = load_keys(config.auth)
    check_bind(config.http.host, authenticator)
    check_tenants(config.scheduler.tenants, authenticator)
    try:
        return _serve(config, authenticator)
    except KeyboardInterrupt:
        print("Stopped at once; running requests were ended.", file=sys.stderr)
        return _EXIT_INTERRUPTED


def _serve(config: ServeConfig, authenticator: Authenticator) -> int:
    stop = threading.Event()
    _handle_signals(_quit)
    with Progress() as progress:
        progress.say("looking at the hardware")
        hardware = detect()
        model = resolve_model(config.model, config.cache_dir.expanduser(), progress.say)
        cluster = Cluster(config, hardware, authenticator, model)
        if not cluster.joined:
            _check_ports(config)
        verdict = _verdict(config, model, progress)
        drain_or_quit = functools.partial(_stop_or_quit, stop)
        try:
            _handle_signals(drain_or_quit)
            progress.say("starting Ray Serve")
            cluster.start(verdict.stamp)
            _handle_signals(drain_or_quit)  # Ray has put a SIGTERM handler of its own in place, which drains nothing
            started = _wait_ready(config, cluster, progress, stop)
        except BaseException:
            _stop_at_once(cluster)
            raise
    if not started:
        _stop_at_once(cluster)
        return 1 if not stop.is_set() else _EXIT_INTERRUPTED
    print(_greeting(config, model, verdict, progress.elapsed_s, cluster.log_dir()), flush=True)
    return _serve_until(stop, config, cluster)


def _verdict(config: ServeConfig, model: ResolvedModel, progress: Progress) -> Verdict:
    """Last of the checks, as it may read all the weights. Warns, or raises ConfigError, as the configuration has it."""
    verdict = examine(config, model, progress.say)
    doubt = warning(verdict, model)
    if doubt is not None:
        print(f"burrstone: warning: {doubt}", file=sys.stderr, flush=True)
    return verdict


def _wait_ready(config: ServeConfig, cluster: Cluster, progress: Progress, stop: threading.Event) -> bool:
    """True when Serve says that the replica runs; False when the start failed or was interrupted."""
    started_s = progress.elapsed_s
    while not stop.wait(_POLL_S):
        state = cluster.state()
        if state.running:
            return True
        progress.say(_starting_detail(config) or "starting the engine's process")
        if state.failed or progress.elapsed_s - started_s > config.replica.start_timeout_s:
            log_dir = cluster.log_dir()
            print(f"{state.message}\nburrstone: the engine did not start: {cause(state.message)}", file=sys.stderr)
            if log_dir:
                print(f"Its logs are in {log_dir}", file=sys.stderr)
            return False
    return False


def cause(message: str) -> str:
    """The last line of Serve's account, which ends with the traceback's exception. pydantic adds words of its own."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("For further information visit")]
    if not said:
        return "it took longer than replica.start_timeout_s"
    return re.sub(r" \[type=\w+, input_value=.*\]$", "", said[-1]).removeprefix("Value error, ")


def _check_ports(config: ServeConfig) -> None:
    """Raises ConfigError for a port that is taken, before anything is started."""
    ports = {"http": config.http.port} | ({"grpc": config.grpc.port} if config.grpc.enabled else {})
    with contextlib.ExitStack() as held:
        for wire, port in ports.items():
            try:
                held.enter_context(bind(config.http.host, port))
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {config.http.host}:{port} ({error.strerror}); "
                    f"choose another port with --{wire}-port"
                ) from error


def _starting_detail(config: ServeConfig) -> str | None:
    """What /ready says that the replica is doing; None while nobody listens, or only to clients with a certificate."""
    if config.tls.client_ca is not None:
        return None
    try:
        with urllib.request.urlopen(f"{base_url(config)}/ready", timeout=5.0, context=_context(config)) as reply:
            return str(json.load(reply)["detail"])
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error)["detail"])
    except (OSError, ValueError):
        return None


def _context(config: ServeConfig) -> ssl.SSLContext | None:
    """Our own listener on our own machine: its certificate names the public host, so it is not checked here."""
    if config.tls.cert is None:
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def base_url(config: ServeConfig) -> str:
    scheme = "http" if config.tls.cert is None else "https"
    return f"{scheme}://{_address(config.http.host, config.http.port)}"


def _address(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def _greeting(
    config: ServeConfig, model: ResolvedModel, verdict: Verdict, elapsed_s: float, log_dir: str | None
) -> str:
    name = (config.served_names or model.served_names)[0]
    guarded = bool(load_keys(config.auth).keys)
    curl_key = " -H 'Authorization: Bearer YOUR_KEY'" if guarded else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Say hello."}]})
    lines = [
        f"burrstone serves {name} (ready after {elapsed_s:.0f} s). Ctrl-C drains and stops.",
        *([] if (line := shown(verdict, model)) is None else [f"verdict    {line}"]),
        *([] if log_dir is None else [f"logs       {log_dir}"]),
        "",
        f"HTTP   {base_url(config)}/v1   (docs: {base_url(config)}/docs)",
        f"  curl {base_url(config)}/v1/chat/completions{curl_key} -H 'Content-Type: application/json' -d '{body}'",
    ]
    if config.grpc.enabled:
        address = _address(config.http.host, config.grpc.port)
        grpc_key = " -H 'authorization: Bearer YOUR_KEY'" if guarded else ""
        params = json.dumps(
            {"params": {"model": name, "messages": [{"role": "ROLE_USER", "content": {"text": "Say hello."}}]}}
        )
        plaintext = "-plaintext " if config.tls.cert is None else ""
        lines += [
            "",
            f"gRPC   {address}   (service burrstone.openai.v1.ChatCompletionService)",
            (
                f"  grpcurl {plaintext}{grpc_key}-d '{params}' {address} "
                "burrstone.openai.v1.ChatCompletionService/CreateChatCompletion"
            ),
        ]
    return "\n".join(lines)


def _serve_until(stop: threading.Event, config: ServeConfig, cluster: Cluster) -> int:
    """Block until told to stop, then drain. 0 when every running request could finish."""
    while not stop.wait(1.0):
        pass
    print("Draining: running requests may finish; press Ctrl-C again to stop now.", file=sys.stderr, flush=True)
    try:
        finished = cluster.drain()
        cluster.stop()
    except BaseException:
        _stop_at_once(cluster)
        raise
    print("Stopped." if finished else "Stopped; some requests were ended.", file=sys.stderr)
    return 0 if finished else 1


def _handle_signals(handle: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: handle())


def _stop_at_once(cluster: Cluster) -> None:
    """Take everything down without waiting. Further signals are ignored, or what is left would be left for good."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cluster.stop()


def _quit() -> None:
    """Nothing runs yet that would have to be stopped in order."""
    raise KeyboardInterrupt


def _stop_or_quit(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt
    stop.set()
