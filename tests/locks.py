"""A folder that somebody else has locked."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

from tinylatent.core.files import locked


@contextlib.contextmanager
def locked_elsewhere(folder):
    """Another thread holds the lock while the block runs."""
    with ThreadPoolExecutor(1) as other, contextlib.ExitStack() as stack:
        other.submit(stack.enter_context, locked(folder)).result()
        try:
            yield
        finally:
            other.submit(stack.close).result()
