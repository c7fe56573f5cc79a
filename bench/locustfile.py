"""Load tests with locust, with an LLM's figures: `burrstone bench locust`, or `locust -f` this file with `--host`."""

import sys
from typing import Any, ClassVar

from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import STATE_INIT
from locust.user.users import LOCUST_STATE_STOPPING

from burrstone.batching.errors import UsageError
from burrstone.bench.load.offer import raise_open_files_limit
from burrstone.bench.swarm.flags import add_to_locust
from burrstone.bench.swarm.run import Offer
from burrstone.bench.swarm.session import Session
from burrstone.bench.swarm.shapes import relative_rate
from burrstone.bench.swarm.web import add_tokens_tab

_MOST_STARTS_PER_S = 100.0


class LoadUser(User):
    """What both kinds of users have in common."""

    abstract = True
    session: ClassVar[Session]

    def stopping(self) -> bool:
        return bool(self._state == LOCUST_STATE_STOPPING)


class DispatcherUser(LoadUser):
    """Open loop: the one user of its process, which sends the process's share of the schedule on time."""

    @task
    def dispatch(self) -> None:
        if self.session.run is not None:
            self.session.run.open_loop(self.stopping)
        raise StopUser


class StreamingUser(LoadUser):
    """Closed loop: one client, whose next request waits for its last answer."""

    @task
    def take_turns(self) -> None:
        if self.session.run is not None:
            self.session.run.closed_loop(self.stopping)
        raise StopUser


class Load(LoadTestShape):
    """Ends the run when all is answered. An open loop's --shape is in its schedule already, and a process has one
    dispatcher; a closed loop's is in the number of users."""

    use_common_options = True

    def tick(self) -> tuple[int, float, list[type[User]]] | None:
        session, runner = LoadUser.session, self.runner
        if runner is None or runner.environment.parsed_options is None:
            return None
        options, arguments = runner.environment.parsed_options, session.arguments
        begun = runner.state != STATE_INIT
        if begun and (session.done() or (options.run_time and self.get_run_time() >= options.run_time)):
            return None
        if arguments.mode == "open":
            # Not of those that are still there: with one fewer, locust could end another's dispatcher.
            processes = max(1, len(session.senders if begun else session.processes()))
            return processes, min(float(processes), _MOST_STARTS_PER_S), [DispatcherUser]
        share = self.get_run_time() / arguments.duration_s if begun else 0.0
        users = max(1, round(int(options.num_users or 1) * relative_rate(arguments.shape, min(share, 1.0))))
        return users, float(options.spawn_rate), [StreamingUser]


@events.init_command_line_parser.add_listener
def _add_flags(parser: Any) -> None:
    add_to_locust(parser)


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    session = LoadUser.session = Session(environment)
    # Locust itself asks for 10,000.
    raise_open_files_limit()
    options: Any = environment.parsed_options
    if options.spawn_rate is None:
        # Locust's own default, one user a second, would be too slow for a shape.
        options.spawn_rate = _MOST_STARTS_PER_S
    if environment.web_ui is not None:
        add_tokens_tab(environment.web_ui, session)
    elif not session.is_worker:
        # Without a page to say it on, what cannot be offered is said at once.
        try:
            Offer(session.arguments)
        except UsageError as error:
            print(f"burrstone: {error}", file=sys.stderr)
            sys.exit(2)
