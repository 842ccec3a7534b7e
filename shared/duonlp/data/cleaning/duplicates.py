"""Find exact duplicates by hash, and near duplicates by MinHash and locality-sensitive hashing (datasketch).

A document's set is its distinct identifiers and numbers, as in
`examples/research_projects/codeparrot/scripts/minhash_deduplication.py` of Hugging Face Transformers
(v4). See Broder 1997, "On the resemblance and containment of documents", and Allamanis 2019, "The
Adverse Effects of Code Duplication in Machine Learning Models of Code".
"""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError, MissingExtraError

# Everything but ASCII letters, digits and underscores becomes a space, so that bytes.split tokenizes at C speed.
_TO_SPACES = bytes(byte if byte < 128 and (chr(byte).isalnum() or chr(byte) == "_") else 32 for byte in range(256))


def content_digest(text: str) -> bytes:
    """Return a 16-byte hash of a text without its whitespace."""
    return hashlib.blake2b("".join(text.split()).encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True)
class NearDuplicateConfig:
    """Settings of near-duplicate detection.

    Attributes:
        threshold: Estimated Jaccard similarity of token sets at or above which the later document is dropped.
        permutations: Hash values per signature, 4 bytes each. The estimate's standard error is
            sqrt(t * (1 - t) / permutations), which is 0.022 at the defaults (CodeParrot's).
        minimum_tokens: Documents with fewer tokens are kept without comparison; their sets are too small.
        seed: Seed of the permutations.

    Raises:
        InputError: If a value is out of range.
    """

    threshold: float = 0.85
    permutations: int = 256
    minimum_tokens: int = 10
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}; it must be a Jaccard similarity in (0, 1], such as 0.85")
        if not 16 <= self.permutations <= 4096:
            raise InputError(f"permutations is {self.permutations}; it must be between 16 and 4096, such as 256")
        if self.minimum_tokens < 1:
            raise InputError(f"minimum_tokens is {self.minimum_tokens}; it must be at least 1")


def signature(text: str, config: NearDuplicateConfig) -> np.ndarray | None:
    """Return the MinHash signature of a text, uint32 [permutations], or None if it has too few tokens to compare.

    Raises:
        MissingExtraError: If datasketch is not installed.
    """
    tokens = text.encode("utf-8").translate(_TO_SPACES).split()
    if len(tokens) < config.minimum_tokens:
        return None
    sketch = _empty_sketch(config).copy()
    sketch.update_batch(set(tokens))
    return sketch.hashvalues


_sketches: dict[NearDuplicateConfig, Any] = {}


def _empty_sketch(config: NearDuplicateConfig) -> Any:
    """Return a cached empty MinHash, so that permutations are drawn once.

    CRC-32 takes a tenth of SHA-1's time, and datasketch mixes its bits anyway.
    """
    if config not in _sketches:
        _sketches[config] = _import_datasketch().MinHash(
            num_perm=config.permutations, seed=config.seed, hashfunc=zlib.crc32, scheme="affine32"
        )
    return _sketches[config]


def _import_datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise MissingExtraError(
            'near-duplicate detection requires datasketch; install it with pip install "duonlp[data]", '
            "or set near_duplicates=None"
        ) from error
    return datasketch


class NearDuplicates:
    """Index of the documents kept so far, which finds near duplicates of a new one.

    A new document is compared with those that were kept, never with those that were dropped. So no two
    kept documents are near duplicates by the estimate, whichever side of a split they land on, and the
    result depends only on the order. Takes about 8 kB of memory per document at 256 permutations.

    Attributes:
        config: Settings.
    """

    def __init__(self, config: NearDuplicateConfig):
        """Create an empty index.

        Raises:
            MissingExtraError: If datasketch is not installed.
        """
        self.config = config
        self._index: Any = _import_datasketch().MinHashLSH(
            num_perm=config.permutations, params=_bands(config), hashfunc=_band_digest
        )
        self._names: list[str] = []
        self._signatures: list[np.ndarray] = []

    def add(self, name: str, values: np.ndarray) -> tuple[str, float] | None:
        """Add a document unless it is a near duplicate of one already in the index.

        Args:
            name: Name of the document, returned when a later one is similar to it.
            values: The document's `signature`, uint32 [permutations].

        Returns:
            None if the document was added; otherwise the name of the most similar document in the index
            (the earliest of several) and the estimated Jaccard similarity.
        """
        sketch = _import_datasketch().MinHash(hashvalues=values, permutations=_empty_sketch(self.config).permutations,
                                       hashfunc=zlib.crc32, scheme="affine32")  # fmt: skip
        candidates = sorted(self._index.query(sketch))
        if candidates:
            equal = np.array([self._signatures[key] for key in candidates]) == values  # [candidates, permutations]
            similarities = equal.mean(axis=1)  # [candidates]
            best = int(similarities.argmax())
            if similarities[best] >= self.config.threshold:
                return self._names[candidates[best]], float(similarities[best])
        self._index.insert(len(self._names), sketch, check_duplication=False)
        self._names.append(name)
        self._signatures.append(values)
        return None


def _bands(config: NearDuplicateConfig) -> tuple[int, int]:
    """Return (bands, rows per band) with the most rows for which a pair at the threshold is a candidate with p >= 0.99.

    datasketch's default balances false candidates against missed ones; here `add` rejects false
    candidates exactly.
    """
    for rows in range(config.permutations // 2, 1, -1):
        bands = config.permutations // rows
        if 1 - (1 - config.threshold**rows) ** bands >= 0.99:
            return bands, rows
    return config.permutations, 1


def _band_digest(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
