"""build(config) -> the Ray Serve application. Wiring only."""

from collections.abc import Mapping

from ray import serve

from burrstone.serving.auth import Authenticator
from burrstone.serving.config import ServeConfig
from burrstone.serving.replica import EngineReplica

APP_NAME = "burrstone"
DEPLOYMENT_NAME = "engine"
_ANY_SHARE = 0.001  # of a node's own resource, of which each node has 1


def build(
    config: ServeConfig,
    environment: Mapping[str, str],
    authenticator: Authenticator,
    *,
    judged_stamp: str | None = None,
    num_gpus: int = 0,
    node_ip: str | None = None,
) -> serve.Application:
    """One engine replica that Serve health-checks and replaces, on the node of `node_ip` or on any.

    `environment` is set before its process starts; `authenticator` carries digests of keys, never keys.
    `judged_stamp` is that of the model's files whose verdict the caller has seen.
    """
    replica = config.replica
    application: serve.Application = (
        serve.deployment(EngineReplica)
        .options(
            name=DEPLOYMENT_NAME,
            num_replicas=1,
            health_check_period_s=replica.health_check_period_s,
            health_check_timeout_s=replica.health_check_timeout_s,
            graceful_shutdown_timeout_s=replica.drain_grace_s + 15.0,
            graceful_shutdown_wait_loop_s=0.2,
            max_ongoing_requests=1000,
            # A first start that fails fails for good: the configuration is wrong. A replacement is tried again and again.
            max_constructor_retry_count=1,
            ray_actor_options={
                "num_cpus": 0,
                "num_gpus": num_gpus,
                "resources": {} if node_ip is None else {f"node:{node_ip}": _ANY_SHARE},
                "runtime_env": {"env_vars": dict(environment)},
            },
        )
        .bind(config.model_dump_json(), authenticator, judged_stamp)
    )
    return application
