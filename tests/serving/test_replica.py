"""The replica's own pieces that need no engine: its log, and waiting for a port."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from burrstone.serving.config import ServeConfig
from burrstone.serving.edges.http_server import bind
from burrstone.serving.replica import _bind_when_free, _configure_logging


@pytest.fixture
def bare_logger() -> Iterator[logging.Logger]:
    """Our logger as a fresh process has it, put back afterwards."""
    logger = logging.getLogger("burrstone")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers = []
    yield logger
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_every_line_is_written_once(bare_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        _configure_logging(ServeConfig.model_validate({"observability": {"log_level": "info"}}))
    logging.getLogger("burrstone.engine").info("engine ready")
    logging.getLogger("burrstone.engine").debug("too much detail")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("INFO burrstone.engine: engine ready")
    assert len(bare_logger.handlers) == 1


async def test_a_port_is_taken_over_when_it_is_let_go() -> None:
    held = bind("127.0.0.1", 0)
    port = held.getsockname()[1]
    with pytest.raises(RuntimeError, match="--http-port"):
        await _bind_when_free("127.0.0.1", port, timeout_s=0.0)
    waiting = asyncio.create_task(_bind_when_free("127.0.0.1", port, timeout_s=60.0))
    held.close()
    taken = await waiting
    assert taken.getsockname()[1] == port
    taken.close()
