"""Round sizes up to a few buckets, so that inputs of a new length rarely trigger a recompilation."""

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


def bucket(size: int, most: int | None = None) -> int:
    """Return the smallest bucket of at least ``size``, capped at ``most`` but never below ``size``.

    Sizes beyond the last bucket round up to a multiple of 1024.
    """
    rounded = next((b for b in BUCKETS if b >= size), -(-size // 1024) * 1024)
    return rounded if most is None else max(size, min(rounded, most))


def largest_bucket(size: int) -> int:
    """Return the largest bucket of at most ``size``, which is at least 1."""
    return max(b for b in BUCKETS if b <= size)
