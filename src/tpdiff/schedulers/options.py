"""The options of a diffusers scheduler, apart from those of other classes that its configuration may hold."""

import inspect
from typing import Any


def option(base: Any, name: str, default: Any = None) -> Any:
    """A scheduler's option, or `default` where its class takes none of that name.

    `from_config` and `from_pretrained` keep all they are given in `config`, so that another class's option stands there
    beside its own and means nothing.
    """
    own = inspect.signature(type(base).__init__).parameters
    return base.config.get(name, default) if name in own else default
