"""What ties locust's events to runs: each run's start, each record, workers' reports to the master, the summary at the end."""

import argparse
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import STATE_INIT, STATE_RUNNING, STATE_SPAWNING, MasterRunner, WorkerRunner
from locust.stats import StatsEntry

from burrstone.batching.errors import UsageError
from burrstone.bench.files import whole_file
from burrstone.bench.load.flags import text_seed, url_of, without_password
from burrstone.bench.load.record import Record
from burrstone.bench.swarm.flags import arguments_of
from burrstone.bench.swarm.ledger import Ledger, Report
from burrstone.bench.swarm.run import Offer, Run, Share, held

_log = logging.getLogger("burrstone")
_MS = 1000.0
_SAMPLE_S = 2.0
_LOCAL = "local"


class RequestFailed(Exception):
    """Why a request counts as failed, for locust's list of failures."""


class Session:
    """One a process. `run`: what this process sends, None in a master, and before the first start."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.ledger = Ledger()
        self.run: Run | None = None
        self._number = 0
        self.senders: list[str] = []
        self._started_s = 0.0
        options: Any = environment.parsed_options
        self._keys = options.key
        events = environment.events
        events.test_start.add_listener(self._start)
        events.test_stopping.add_listener(self._stopping)
        events.report_to_master.add_listener(self._report)
        events.worker_report.add_listener(self._take)
        events.quitting.add_listener(self._quit)
        if not self.is_worker:
            gevent.spawn(self._sample)

    @property
    def is_worker(self) -> bool:
        return isinstance(self._environment.runner, WorkerRunner)

    @property
    def arguments(self) -> argparse.Namespace:
        return arguments_of(self._environment.parsed_options, self._environment.host)

    def processes(self) -> list[str]:
        """Those that could send."""
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            return [node.id for node in runner.clients.ready + runner.clients.spawning + runner.clients.running]
        return [_LOCAL]

    def done(self) -> bool:
        """Whether every process has sent all of its share and has its answers, or the run cannot go on. Who was lost is
        waited for no longer, who joined later sends nothing."""
        self.refresh()
        return self.ledger.error is not None or self.ledger.done(set(self.senders) - self.ledger.lost)

    def refresh(self) -> None:
        """Take this process's own counts, where it sends itself, and see who was lost: once a run stops, all leave."""
        runner = self._environment.runner
        if self.run is not None and not self.is_worker:
            self.ledger.take(_LOCAL, self._report_of(self.run))
        if not self.is_worker and runner is not None and runner.state in (STATE_SPAWNING, STATE_RUNNING):
            here = self.processes()
            lost = {name for name in self.senders if name not in here and not self.ledger.done([name])}
            for name in lost - self.ledger.reports.keys():
                self.ledger.take(name, self._unheard(name))
            self.ledger.lost = lost

    def summary(self) -> dict[str, Any]:
        self.refresh()
        return self.ledger.summary()

    def _start(self, **_: Any) -> None:
        options: Any = self._environment.parsed_options
        if not self.is_worker:
            self.ledger.begin()
            self._started_s = time.monotonic()
            # The page does not show the keys: its field left empty means those that were given before.
            if not any(options.key or ()):
                options.key = self._keys
            self._keys = options.key
            # Options go to the workers with the order to start: which run this is, whose share is which, the texts' seed.
            self.senders = self.processes()
            options.load_run, options.load_processes = self.ledger.run, self.senders
            options.load_text_seed = text_seed(self.arguments)
            options.load_stop_timeout = self._environment.stop_timeout
            if self.arguments.mode == "closed":
                # A user that the shape takes away ends its request first. See _stopping.
                self._environment.stop_timeout = max(options.load_stop_timeout, self.arguments.timeout_s)
        self.ledger.error = None
        if self.run is not None:
            self.run.close()
            self.run = None
        runner: Any = self._environment.runner
        name = runner.client_id if self.is_worker else _LOCAL
        if name not in options.load_processes:
            return
        self._number = options.load_run
        share = Share(options.load_processes.index(name), len(options.load_processes))
        try:
            self.run = Run(self._offered(), share, self._book)
        except UsageError as error:
            self.ledger.error = str(error)
            _log.error("%s", error)

    def _stopping(self, **_: Any) -> None:
        """The end, or somebody's wish, for which users get as long as locust was told."""
        self.refresh()
        options: Any = self._environment.parsed_options
        self._environment.stop_timeout = getattr(options, "load_stop_timeout", self._environment.stop_timeout)

    def _offered(self) -> argparse.Namespace:
        """The arguments in effect: where no seed of the texts was given, it is that of this start."""
        seed = getattr(self._environment.parsed_options, "load_text_seed", None)
        return argparse.Namespace(**vars(self.arguments) | {"text_seed": seed})

    def _report_of(self, run: Run) -> Report:
        return Report(self._number, run.done, run.tallies, run.holds)

    def _unheard(self, name: str) -> Report:
        """For a process that was lost before it reported: an open loop's share is known all the same."""
        holds: dict[str, int] = {}
        with contextlib.suppress(UsageError):
            if self.arguments.mode == "open":
                script = next(Offer(self._offered()).rounds())
                holds = held(script, Share(self.senders.index(name), len(self.senders)))
        return Report(self.ledger.run, False, {}, holds)

    def _book(self, record: Record) -> None:
        """Tell locust. Aggregated is to count requests, and locust's charts are drawn from it: so the request event is the
        whole answer's, and the other rows are filled past it, which also costs a gap between pieces less."""
        entries, tenant = self._environment.stats.entries, record.tenant
        if record.ok:
            entries[tenant, "TTFT"].log(_MS * record.ttft_s, 0)
            gaps = entries[tenant, "ITL"]
            for gap_s in record.gaps_s:
                gaps.log(_MS * gap_s, 0)
            _count(entries[tenant, "TOKEN"], record.output_tokens)
            if record.good:
                _count(entries[tenant, "GOOD"], 1)
        self._environment.events.request.fire(
            request_type="E2E",
            name=tenant,
            response_time=_MS * record.e2e_s if record.ok else None,
            response_length=record.output_tokens,
            exception=None if record.ok else RequestFailed(record.error),
            context={},
        )

    def _report(self, client_id: str, data: dict[str, Any]) -> None:
        if self.run is not None:
            data["load"] = self._report_of(self.run).as_json()
        elif self.ledger.error is not None:
            data["load_error"] = [self._number, self.ledger.error]

    def _take(self, client_id: str, data: dict[str, Any]) -> None:
        if "load" in data:
            self.ledger.take(client_id, Report.of_json(data["load"]))
        elif data.get("load_error", [None])[0] == self.ledger.run:
            self.ledger.error = data["load_error"][1]

    def _sample(self) -> None:
        while True:
            gevent.sleep(_SAMPLE_S)
            runner = self._environment.runner
            if runner is not None and runner.state in (STATE_SPAWNING, STATE_RUNNING):
                self.refresh()
                self.ledger.sample(time.monotonic() - self._started_s)

    def _quit(self, **_: Any) -> None:
        runner, options = self._environment.runner, self._environment.parsed_options
        if self.is_worker or runner is None or options is None:
            return
        if runner.state != STATE_INIT:
            # What was under way is booked by stopping; workers send their last reports.
            runner.quit()
        found, (warning, code) = self.summary(), self.ledger.verdict()
        result = json.dumps(found | {"setting": _setting(self._offered())}, indent=1)
        if options.json_out and not _written(Path(options.json_out), result):
            code = 2
        if warning is not None:
            _log.warning("%s", warning)
        if code:
            # Else it is locust's own, which is 1 where requests failed.
            self._environment.process_exit_code = code


def _written(file: Path, result: str) -> bool:
    """A result that cannot be written is printed: a long run is not to be lost to a mistyped name."""
    try:
        with whole_file(file) as scratch:
            scratch.write_text(result + "\n")
    except (UsageError, ValueError) as error:
        _log.error("%s", error)
        print(result, flush=True)
        return False
    return True


def _count(entry: StatsEntry, amount: int) -> None:
    """So many more in the entry, of which no time is told: what its rate column is for."""
    now_s = time.time()
    entry.num_requests += amount
    entry.num_none_requests += amount
    entry.num_reqs_per_sec[int(now_s)] += amount
    entry.last_request_timestamp = now_s


def _setting(arguments: argparse.Namespace) -> dict[str, Any]:
    hidden = ("key", "json_out", "concurrency")
    shown = {name: value for name, value in vars(arguments).items() if name not in hidden}
    return shown | {"url": without_password(url_of(arguments))}
