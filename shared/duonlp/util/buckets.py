"""A few lengths for all inputs, so that a second call with another length does not compile again."""

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


def bucket(size: int, most: int | None = None) -> int:
    """The smallest bucket that holds ``size``, but no more than ``most``."""
    found = next((b for b in BUCKETS if b >= size), -(-size // 1024) * 1024)
    return found if most is None else max(size, min(found, most))
