"""vLLM 0.32's scheduler for `fcfs`, written down a second time with lists and dictionaries and no thought of speed.

From v1/core/sched/scheduler.py, kv_cache_manager.py and block_pool.py. It shares no code with the simulator.
"""

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass
class NaiveRequest:
    """`text`: what each token position is, so that equal prefixes are equal lists."""

    number: int
    arrival_s: float
    prompt: list[object]
    output_tokens: int
    computed: int = 0
    outputs: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    ended_s: float = -1.0
    blocks: list["Block"] = field(default_factory=list)
    published: int = 0

    def tokens(self) -> list[object]:
        return self.prompt + [(self.number, index) for index in range(self.outputs)]


@dataclass(eq=False)
class Block:
    refs: int = 0
    key: tuple[object, ...] | None = None


class NaiveBlocks:
    """Blocks with an LRU queue; a key is the whole text up to the end of the block."""

    def __init__(self, num_blocks: int, block_size: int, caching: bool) -> None:
        self.block_size, self.caching = block_size, caching
        self.free: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(num_blocks))
        self.by_key: dict[tuple[object, ...], list[Block]] = {}

    def prefix(self, request: NaiveRequest) -> list[Block]:
        tokens = request.tokens()
        found: list[Block] = []
        while self.caching and (len(found) + 1) * self.block_size <= len(tokens) - 1:
            same = self.by_key.get(tuple(tokens[: (len(found) + 1) * self.block_size]))
            if not same:
                break
            found.append(same[0])
        return found

    def missing(self, request: NaiveRequest, found: list[Block]) -> int:
        need = -(-len(request.tokens()) // self.block_size) - len(found)
        return need + sum(block.refs == 0 for block in found) - len(self.free)

    def adopt(self, request: NaiveRequest, found: list[Block]) -> None:
        for block in found:
            self.free.pop(block, None)
            block.refs += 1
        request.blocks, request.published = list(found), len(found)

    def grow(self, request: NaiveRequest, num_tokens: int) -> bool:
        more = -(-num_tokens // self.block_size) - len(request.blocks)
        if more > len(self.free):
            return False
        for _ in range(more):
            block, _none = self.free.popitem(last=False)
            if block.key is not None:
                same = self.by_key[block.key]
                same.remove(block)
                if not same:
                    del self.by_key[block.key]
            block.key, block.refs = None, 1
            request.blocks.append(block)
        tokens = request.tokens()
        while self.caching and (request.published + 1) * self.block_size <= num_tokens:
            block = request.blocks[request.published]
            request.published += 1
            block.key = tuple(tokens[: request.published * self.block_size])
            self.by_key.setdefault(block.key, []).append(block)
        return True

    def release(self, request: NaiveRequest) -> None:
        front: list[Block] = []
        for block in reversed(request.blocks):
            block.refs -= 1
            if block.refs == 0 and block.key is not None:
                self.free[block] = None
            elif block.refs == 0:
                front.append(block)
        for block in reversed(front):
            self.free[block] = None
            self.free.move_to_end(block, last=False)
        request.blocks, request.published = [], 0


class NaiveEngine:
    """Runs requests, in order of arrival, to the end."""

    def __init__(self, *, max_num_seqs: int, limit: int, blocks: NaiveBlocks, model: list[float]) -> None:
        self.max_num_seqs, self.limit, self.blocks, self.model = max_num_seqs, limit, blocks, model
        self.waiting: list[NaiveRequest] = []
        self.running: list[NaiveRequest] = []
        self.now_s = 0.0

    def run(self, requests: list[NaiveRequest]) -> None:
        todo = list(requests)
        while todo or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now_s = max(self.now_s, todo[0].arrival_s)
            while todo and todo[0].arrival_s <= self.now_s:
                self.waiting.append(todo.pop(0))
            self.step()

    def step(self) -> None:
        scheduled: list[tuple[NaiveRequest, int]] = []
        left, preempted, place = self.limit, False, 0
        while place < len(self.running) and left > 0:
            request = self.running[place]
            tokens = min(len(request.tokens()) - request.computed, left)
            while not (fits := self.blocks.grow(request, request.computed + tokens)):
                victim = self.running.pop()
                self.blocks.release(victim)
                victim.computed, victim.preemptions, preempted = 0, victim.preemptions + 1, True
                self.waiting.insert(0, victim)
                if victim is request:
                    break
            if not fits:
                break
            scheduled.append((request, tokens))
            left, place = left - tokens, place + 1
        while not preempted and self.waiting and left > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            found = self.blocks.prefix(request)
            if self.blocks.missing(request, found) > 0:
                break
            request.computed = len(found) * self.blocks.block_size
            if request.scheduled_s < 0:
                request.scheduled_s, request.cached_tokens = self.now_s, request.computed
            tokens = min(len(request.tokens()) - request.computed, left)
            self.blocks.adopt(request, found)
            assert self.blocks.grow(request, request.computed + tokens)
            self.running.append(self.waiting.pop(0))
            scheduled.append((request, tokens))
            left -= tokens
        self.now_s += self.seconds(scheduled)
        self.hand_out(scheduled)

    def seconds(self, scheduled: list[tuple[NaiveRequest, int]]) -> float:
        prefill = decodes = context = pairs = 0.0
        for request, tokens in scheduled:
            if request.outputs == 0 or request.computed < len(request.tokens()) - 1:
                prefill += tokens
                pairs += tokens * (request.computed + 0.5 * tokens)
            else:
                decodes += 1
                context += request.computed
        base, per_prefill, per_decode, per_context, per_pair = self.model
        return base + per_prefill * prefill + per_decode * decodes + per_context * context + per_pair * pairs

    def hand_out(self, scheduled: list[tuple[NaiveRequest, int]]) -> None:
        for request, tokens in scheduled:
            request.computed += tokens
            if request.computed == len(request.tokens()):
                request.outputs += 1
                if request.first_token_s < 0:
                    request.first_token_s = self.now_s
                if request.outputs == request.output_tokens:
                    request.ended_s = self.now_s
                    self.blocks.release(request)
                    self.running.remove(request)
