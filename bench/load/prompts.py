"""Text for a workload's requests: as many words as it has tokens, the same words where prefixes are the same.

Words that nearly every tokenizer has as one token; what the prompts really cost is in the server's usage. Everything else
differs from its first words on, so that no cache flatters.
"""

from dataclasses import dataclass, field

import numpy as np

from burrstone.batching.sim.traffic.workload_types import NONE, Workload

# The commonest English words of three letters or more, all of them one token with a space before.
_TEXT = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see "
    "two way who boy did its let put say she too use dad mom that with have this will your from they know want "
    "been good much some time very when come here just like long make many more only over such take than them "
    "well were what year back call came each even find give hand high keep last left life live look made most "
    "move must name need next open part play right same seem show side small start state still stop study tell "
    "think three turn under until water where which while white world would write about above after again along "
    "began being below between both change city close country different does earth every example family father "
    "feet food form found great group grow hard head help home house idea important land large late learn letter "
    "light line list little might mile mother mountain near never night number often once order other own page "
    "paper people picture place plant point question quick read really river run said school second sentence set "
    "should song soon sound stand story their there these thing those thought through together took tree try us "
    "usual walk watch went without word work young"
)
WORDS = tuple(_TEXT.split())


@dataclass(slots=True)
class Prompts:
    """`first(i)` is the text of request i; `next(i, spoken)` what is added to a conversation of `spoken` tokens."""

    workload: Workload
    seed: int
    _blocks: dict[int, str] = field(default_factory=dict)

    def first(self, number: int) -> str:
        wanted = int(self.workload.input_tokens[number])
        shared = self._shared(number)
        missing = wanted - len(shared.split())
        return f"{shared} {self._own(number, missing)}".strip() if missing else shared

    def next(self, number: int, spoken: int) -> str:
        return self._own(number, int(self.workload.input_tokens[number]) - spoken)

    def _own(self, number: int, size: int) -> str:
        return _words(np.random.default_rng([self.seed, 1, number]), max(1, size))

    def _shared(self, number: int) -> str:
        """The words of its hashed blocks, as far as they lie in the prompt."""
        prefixes = self.workload.prefixes
        if prefixes is None:
            return ""
        hashes = prefixes.hashes[prefixes.starts[number] : prefixes.starts[number + 1]]
        within = int(self.workload.input_tokens[number]) // prefixes.block_tokens
        return " ".join(self._block(int(value), prefixes.block_tokens) for value in hashes[:within])

    def _block(self, value: int, size: int) -> str:
        if value not in self._blocks:
            self._blocks[value] = _words(np.random.default_rng([self.seed, 2, value]), size)
        return self._blocks[value]


def followers(workload: Workload) -> dict[int, list[int]]:
    """Request -> those that come after its answer."""
    found: dict[int, list[int]] = {}
    for number, before in enumerate(workload.after.tolist()):
        if before != NONE:
            found.setdefault(before, []).append(number)
    return found


def _words(rng: np.random.Generator, size: int) -> str:
    return " ".join(WORDS[place] for place in rng.integers(0, len(WORDS), size))
