"""Ray Serve as the control plane: start it on this machine, deploy the application, ask how it is, take it all down."""

import contextlib
import logging
import math
import os
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burrstone.serving.auth import Authenticator
from burrstone.serving.config import EMBEDDED_MODEL, ConfigError, ServeConfig
from burrstone.serving.engine.cpu import check_cpu, cpu_environment
from burrstone.serving.engine.environment import shared_environment
from burrstone.serving.engine.kernels import check_kernels, kernel_arguments, kernel_environment
from burrstone.serving.engine.kv_cache import kv_cache_dtype
from burrstone.serving.engine.models import ResolvedModel
from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.hardware import Hardware

APP_NAME = "burrstone"
DEPLOYMENT_NAME = "engine"
# Ray starts its workers at nice 15; on a small machine that starves the engine behind every other process.
_RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ten times a second, Ray's default, the controller takes 2.4 % of a core from an engine that has use for all of them.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
}
# For a Ray of our own. Ray reads the first as "this machine only" and binds its ports to loopback.
_LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_DRAIN_EXTRA_S = 20.0  # after the grace period: last words to clients, closing listeners, ending the engine
_OBJECT_STORE_BYTES = 128 * 2**20  # no tokens pass through it


@dataclass(frozen=True, slots=True)
class DeployState:
    """`failed` is final: Serve has given up. `message` is Serve's own account of it."""

    status: str
    message: str

    @property
    def running(self) -> bool:
        """The replica has started; it says `ready` from now on."""
        return self.status == "RUNNING"

    @property
    def failed(self) -> bool:
        return self.status in ("DEPLOY_FAILED", "UNHEALTHY")


class Cluster:
    """One application on one Ray Serve instance. RAY_ADDRESS joins a running cluster; otherwise Ray starts here."""

    def __init__(
        self, config: ServeConfig, hardware: Hardware, authenticator: Authenticator, model: ResolvedModel
    ) -> None:
        """`model` is what `config.model` means here. Raises ConfigError for what cannot work."""
        # Decided once, here: what the replica is given must fit what it then does.
        self._config = config.model_copy(
            update={"profile": _profile(config, hardware), "model": _whereabouts(config, model)}
        )
        # The replica asks again, but only once Ray runs.
        kernel_arguments(self._config, kv_cache_dtype(self._config, model.config))
        self._environment = engine_environment(self._config, hardware)
        self._authenticator = authenticator
        self._deployed = False
        self.joined = bool(os.environ.get("RAY_ADDRESS"))
        self._session_dir: str | None = None

    def start(self, judged_stamp: str | None) -> None:
        """Start Ray if need be and deploy. Returns before the engine is ready; watch /ready and state().

        `judged_stamp` is of the model's files whose verdict was looked at, so that the replica need not read them again.
        Raises ConfigError when the cluster that was joined runs a server of ours already, and when this machine lacks GPUs.
        """
        wanted = _RAY_ENVIRONMENT
        if not self.joined:
            # Serve's replicas listen on every address whatever Ray does; only holders of the token may speak to them.
            wanted = wanted | _LOCAL_ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.update({key: os.environ.get(key, value) for key, value in wanted.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            from ray import serve

            from burrstone.serving.app import build

        if not ray.is_initialized():
            local: dict[str, Any] = {} if self.joined else {"object_store_memory": _OBJECT_STORE_BYTES}
            try:
                context = ray.init(
                    address=None if self.joined else "local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **local,
                )
            except ConnectionError as error:
                raise ConfigError(
                    f"RAY_ADDRESS: {error}; start that cluster, or unset RAY_ADDRESS. "
                    "A cluster that asks for a token wants RAY_AUTH_MODE=token here as well"
                ) from error
            self._session_dir = None if self.joined else context.address_info["session_dir"]
        if not self.joined:
            _check_gpus(num_gpus(self._config), int(ray.cluster_resources().get("GPU", 0)))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        if APP_NAME in serve.status().applications:
            raise ConfigError(
                f"the Ray cluster at RAY_ADDRESS runs an application {APP_NAME!r} already; stop that server first, "
                "or unset RAY_ADDRESS to start a Ray of this server's own"
            )
        self._deployed = True
        application = build(
            self._config,
            self._environment,
            self._authenticator,
            judged_stamp=judged_stamp,
            num_gpus=num_gpus(self._config),
            # The listeners are on this machine's addresses, so the replica must be on this machine.
            node_ip=ray.util.get_node_ip_address() if self.joined else None,
        )
        serve.run_many(
            [serve.RunTarget(application, name=APP_NAME, route_prefix=None)], wait_for_applications_running=False
        )

    def state(self) -> DeployState:
        """How the deployment is doing, from Serve's controller."""
        from ray import serve

        application = serve.status().applications.get(APP_NAME)
        if application is None:
            return DeployState("NOT_STARTED", "")
        deployment = application.deployments.get(DEPLOYMENT_NAME)
        return DeployState(application.status.value, deployment.message if deployment else application.message)

    def drain(self) -> bool:
        """Refuse new requests and let running ones finish. True when all of them did."""
        from ray import serve
        from ray.exceptions import RayError

        handle = serve.get_deployment_handle(DEPLOYMENT_NAME, APP_NAME)
        try:
            finished: bool = handle.drain.remote().result(timeout_s=self._config.replica.drain_grace_s + _DRAIN_EXTRA_S)
        except (TimeoutError, RayError):  # the replica has died, or is just being replaced
            return False
        return finished

    def log_dir(self) -> str | None:
        """Where Ray keeps this session's logs, when it was started here."""
        return None if self._session_dir is None else os.path.join(self._session_dir, "logs")

    def stop(self) -> None:
        """Take down the application, and all of Ray when it was started here. Waits for no request. Safe to call twice."""
        import ray
        from ray import serve

        if not ray.is_initialized():
            return
        if self.joined and self._deployed:
            with contextlib.suppress(Exception):  # Serve may be gone already
                serve.delete(APP_NAME)
        # Serve's own threads go on for a moment without Ray, and would report what they then miss.
        for name in ("asyncio", "ray.serve"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        ray.shutdown()


def _check_gpus(needed: int, there: int) -> None:
    """Ray would wait for them."""
    if needed > there:
        raise ConfigError(
            f"profile cuda needs {needed} GPU(s), one for each worker, and Ray sees {there} here; serve on a machine that "
            "has them, join a Ray cluster with RAY_ADDRESS, or leave the profile to the machine"
        )


def num_gpus(config: ServeConfig) -> int:
    """GPUs that the engine's workers need together; `config.profile` is a real one, not `auto`."""
    if config.profile != "cuda":
        return 0
    further = (config.engine.vllm_args.get(key) for key in ("pipeline_parallel_size", "data_parallel_size"))
    return config.engine.tensor_parallel_size * math.prod(size for size in further if isinstance(size, int))


def engine_environment(config: ServeConfig, hardware: Hardware) -> Mapping[str, str]:
    """What the replica's process and its children must find in their environment. Raises ConfigError for what cannot work."""
    profile = _profile(config, hardware)
    check_kernels(config, profile)
    scheduling = SchedulerOptions.of(config.scheduler, profile).environment()
    if profile == "cpu":
        check_cpu(config, hardware)
        return cpu_environment(config, hardware) | scheduling
    if profile == "cuda":
        return shared_environment(config, os.environ) | kernel_environment(config) | scheduling
    raise ConfigError(
        f"profile {profile!r}: this release plans for Neuron but does not serve on it yet; use profile cpu or cuda"
    )


def _profile(config: ServeConfig, hardware: Hardware) -> str:
    return hardware.profile if config.profile == "auto" else config.profile


def _whereabouts(config: ServeConfig, model: ResolvedModel) -> str:
    """The model by a name that means the same in the replica, whose working directory may be another."""
    return config.model if config.model == EMBEDDED_MODEL else model.path
