"""Processes that train together: which of them speaks to the user, and how the end of another one shows.

What comes in: the environment of the process, and errors. What goes out: whether it is the first one, and whether an
error only says that another process is gone.
"""

import os

# Libraries through which processes exchange tensors name themselves in what they raise.
EXCHANGES = ("gloo", "NCCL")


def is_first_process() -> bool:
    """Whether this is the only one or the first of the processes that train together on a machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_lost_process(error: BaseException | None) -> bool:
    """Whether an error says that another process does not answer, which is not what went wrong there."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in EXCHANGES)
