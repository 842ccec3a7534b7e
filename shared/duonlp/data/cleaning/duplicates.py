"""Duplicates of documents: exact ones by a hash, near ones by MinHash and locality-sensitive hashing with datasketch.

Follows `examples/research_projects/codeparrot/scripts/minhash_deduplication.py` of Hugging Face Transformers (v4) in what
a document's set is: its distinct identifiers and numbers. Broder 1997, "On the resemblance and containment of documents";
Allamanis 2019, "The Adverse Effects of Code Duplication in Machine Learning Models of Code".
"""

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError, MissingExtraError

# Everything but ASCII letters, digits and underscores becomes a space: then bytes.split is the tokenizer, at C's speed.
_TO_SPACES = bytes(byte if byte < 128 and (chr(byte).isalnum() or chr(byte) == "_") else 32 for byte in range(256))


def content_digest(text: str) -> bytes:
    """Returns 16 bytes that two texts share when they differ in white space alone."""
    return hashlib.blake2b("".join(text.split()).encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True)
class NearDuplicateConfig:
    """When two documents are too alike to keep both.

    threshold: the Jaccard similarity of their sets of tokens, estimated, from which on the later one is dropped.
    permutations: hash values of a signature; the estimate's standard error is sqrt(t * (1 - t) / permutations), which is
        0.022 at the defaults (CodeParrot's). Each is 4 bytes of memory a document.
    minimum_tokens: shorter documents have too small a set to compare; they are kept.
    seed: of the permutations.

    Raises:
        InputError: a value that is out of its range.
    """

    threshold: float = 0.85
    permutations: int = 256
    minimum_tokens: int = 10
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}; it must be a Jaccard similarity in (0, 1], such as 0.85")
        if not 16 <= self.permutations <= 4096:
            raise InputError(f"permutations is {self.permutations}; it must be from 16 to 4096, such as 256")
        if self.minimum_tokens < 1:
            raise InputError(f"minimum_tokens is {self.minimum_tokens}; it must be at least 1")


def signature(text: str, config: NearDuplicateConfig) -> np.ndarray | None:
    """Returns the MinHash signature of a text, uint32 [permutations]; None when it has too few tokens to compare.

    Raises:
        MissingExtraError: datasketch is not installed.
    """
    tokens = text.encode("utf-8").translate(_TO_SPACES).split()
    if len(tokens) < config.minimum_tokens:
        return None
    sketch = _empty_sketch(config).copy()
    sketch.update_batch(set(tokens))
    return sketch.hashvalues


_sketches: dict[NearDuplicateConfig, object] = {}


def _empty_sketch(config: NearDuplicateConfig):
    """An empty MinHash, whose permutations are drawn once. CRC-32 is a tenth of SHA-1's time; datasketch mixes its bits."""
    if config not in _sketches:
        _sketches[config] = _datasketch().MinHash(
            num_perm=config.permutations, seed=config.seed, hashfunc=zlib.crc32, scheme="affine32"
        )
    return _sketches[config]


def _datasketch():
    try:
        import datasketch
    except ImportError as error:
        raise MissingExtraError(
            'near duplicates are found with datasketch, which is missing; pip install "duonlp[data]", '
            "or leave them out with near_duplicates=None"
        ) from error
    return datasketch


class NearDuplicates:
    """The documents kept so far, in an index that says which one of them a new document is nearly the same as.

    A new document is held against those that were kept, never against those that were dropped. So no two that were
    kept are alike by the estimate, on whatever side of a split they fall, and what is kept depends on the order alone.
    Memory: about 8 kB a document at 256 permutations.
    """

    def __init__(self, config: NearDuplicateConfig):
        self.config = config
        self._index = _datasketch().MinHashLSH(
            num_perm=config.permutations, params=_bands(config), hashfunc=_band_digest
        )
        self._names: list[str] = []
        self._signatures: list[np.ndarray] = []

    def add(self, name: str, values: np.ndarray) -> tuple[str, float] | None:
        """Keeps a document, unless one that was kept is like it.

        Args:
            name: what to call it when a later document is like it.
            values: its `signature`.

        Returns:
            None when it is kept; otherwise the name of the most similar document kept (the first of those), and their
            estimated Jaccard similarity.
        """
        sketch = _datasketch().MinHash(hashvalues=values, permutations=_empty_sketch(self.config).permutations,
                                       hashfunc=zlib.crc32, scheme="affine32")  # fmt: skip
        candidates = sorted(self._index.query(sketch))
        if candidates:
            same = np.array([self._signatures[key] for key in candidates]) == values  # [candidates, permutations]
            similarities = same.mean(axis=1)
            best = int(similarities.argmax())
            if similarities[best] >= self.config.threshold:
                return self._names[candidates[best]], float(similarities[best])
        self._index.insert(len(self._names), sketch, check_duplication=False)
        self._names.append(name)
        self._signatures.append(values)
        return None


def _bands(config: NearDuplicateConfig) -> tuple[int, int]:
    """(bands, rows of each): the longest rows with which a pair at the threshold is a candidate 99 times in 100.

    datasketch's own choice weighs false candidates against missed ones; here the signatures refuse the false ones.
    """
    for rows in range(config.permutations // 2, 1, -1):
        bands = config.permutations // rows
        if 1 - (1 - config.threshold**rows) ** bands >= 0.99:
            return bands, rows
    return config.permutations, 1


def _band_digest(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
