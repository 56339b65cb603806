"""What text encoders made of prompts, kept for when they come again, within bounds."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping

from torch import Tensor

Condition = Mapping[str, Tensor]
LIMIT = 2 * 2**30


class KeptConditions(MutableMapping[str | None, Condition]):
    """Prompt -> what was made of it, in at most so many bytes: those that were not used for longest go first.

    That of no prompt, None, always stays.

    Args:
        limit: bytes of all but that.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._kept: OrderedDict[str | None, Condition] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, prompt: str | None) -> Condition:
        self._kept.move_to_end(prompt)
        return self._kept[prompt]

    def __setitem__(self, prompt: str | None, condition: Condition) -> None:
        self.pop(prompt, None)
        self._kept[prompt] = condition
        self._bytes += _size(prompt, condition)
        while self._bytes > self.limit:
            del self[next(one for one in self._kept if one is not None)]

    def __delitem__(self, prompt: str | None) -> None:
        self._bytes -= _size(prompt, self._kept.pop(prompt))

    @property
    def full(self) -> bool:
        """Whether one more as large as the mean would drive another out."""
        others = len(self._kept) - (None in self._kept)
        return others > 0 and self._bytes * (others + 1) > self.limit * others

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._kept

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def _size(prompt: str | None, condition: Condition) -> int:
    return 0 if prompt is None else sum(value.nbytes for value in condition.values())
