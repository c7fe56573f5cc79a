"""A fork server that imports vLLM while the replica does, so that the engine core starts without importing it again."""

import multiprocessing
import multiprocessing.forkserver
import os

# Set in the replica and inherited by its children: they may rely on being forked from the fork server.
FORKSERVER_ENV = "BURRSTONE_FORKSERVER"


def start() -> None:
    """Start it; returns at once. It ends by itself when this process does."""
    os.environ[FORKSERVER_ENV] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["burrstone.serving.engine.preload"])
    multiprocessing.forkserver.ensure_running()
