"""Checks what a configuration asks of a machine's memory, and which paths can be made, before anything is done."""

MEMORY = 8 << 30  # bytes that one worker may ask for: some ten times what the largest sensible task takes
COPIES = 24  # of the parameters: gradients, the optimizer's state, points of the path and sums of increments


def check_path(path: str) -> str:
    """Returns a run directory's path or URL. Raises ValueError where no file system could hold it."""
    if not path.isprintable():
        raise ValueError("must be printable characters")
    longest = max((len(part.encode()) for part in path.split("/")), default=0)
    if longest > 255 or len(path.encode()) > 4000:
        raise ValueError(
            f"is too long for a path: {len(path.encode())} bytes, {longest} in a name; at most 4000 and 255"
        )
    return path


def check_memory(asked: int, keys: str) -> None:
    """Raises ValueError where the ``keys`` make a worker take more bytes of memory than ``MEMORY``."""
    if asked > MEMORY:
        raise ValueError(
            f"{keys}: a worker would take {asked:,} bytes ({asked / 2**30:,.1f} GiB) of memory or more; at most "
            f"{MEMORY:,} are allowed"
        )
