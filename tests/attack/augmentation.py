"""Augment random texts: protected parts stay, only words change, batches do not matter, and damaged caches are repaired."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.attack.harness import HELD, Budget, Outcome, attack

PIECES = (
    "the", "model", "Training", "fails", "I'd", "na\u00efve", "GPU", "NaN", "x", "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\u65e5\u672c\u8a9e", "\u0130stanbul", "\u1e9e", "\ufb01ne", "e\u0301te\u0301", "read_csv", "`code here`", "`", "``", "~~~",
    "```\nblock\n```", "```", "<b>", "<", "https://a.org/x", "a@b.de", "@user", "#12", "{name}", "[link](target)", "v2.0", "99%",
    "[MASK]", "[SEP]", "[PAD]", "\U0001f600", "\u202e", "bug report", "\x00", "\x1b[0m", "-", "...", "(", ")", "**bold**", "'",
    "\u2019s", "\ufeff", "don't.", "A", "\\", "$x$",
)  # fmt: skip
SEPARATORS = (" ", " ", " ", "  ", "\n", "\n\n", "\t", "", "", "\u00a0", "\u2028", "\r\n", ", ")
PROTECTED = ("bug report", "training")


def random_text(rng: np.random.Generator) -> str:
    """Return a text of random pieces, or of random characters."""
    if rng.random() < 0.15:
        codes = rng.integers(0, 0x11000, rng.integers(0, 60))
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
    count = int(rng.choice([0, 1, 2, 5, 20, 60]))
    return "".join(str(rng.choice(PIECES)) + str(rng.choice(SEPARATORS)) for _ in range(count))


def make(number: int, rng: np.random.Generator):
    """Return an augmenter with random settings, and whether it leaves everything between words as it is."""
    from duonlp import augmentation as a
    from tests.augmentation import FORTH, KINDS, fill_mask, translator

    protect, share = a.Protection(words=PROTECTED), float(rng.choice([0.01, 0.1, 0.5, 1.0]))
    table = {"the": ["a", "one more"], "model": ["network"], "fails": ["breaks"], "training": ["learning", "bug"]}
    synonyms = a.Synonyms(table, share, stop_words=(), protect=protect)
    edits = a.RandomEdits(share, synonyms=synonyms if rng.random() < 0.5 else None, protect=protect)
    batch_size = int(rng.integers(1, 9))
    kind = number % 6
    if kind < 3:
        pipe, top_k = fill_mask(KINDS[kind], batch_size=batch_size), int(rng.choice([1, 10, 10_000]))
        settings = {"masked_at_once": float(rng.choice([0.01, 0.15, 1.0])), "max_length": int(rng.choice([8, 16, 64]))}
        return a.MaskedSubstitution(pipe, share, top_k, protect=protect, name=f"{kind}", **settings), True
    if kind == 3:
        return synonyms, True
    if kind == 4:
        return edits, False
    if rng.random() < 0.5:
        return a.compose(edits, synonyms), False
    pipes = translator(FORTH, 8), translator({german: english for english, german in FORTH.items()}, 8)
    return a.BackTranslation(*pipes, names=("there", "back"), protect=protect), False


@attack("augmentation")
def augmentation(budget: Budget) -> Iterator[Outcome]:
    """Augment random texts with every augmenter, and through a cache that is damaged between calls."""
    rng = budget.rng
    for number in budget:
        augmenter, only_words = make(number, rng)
        texts = [random_text(rng) for _ in range(int(rng.integers(1, 5)))]
        per_text, seed = int(rng.integers(1, 4)), int(rng.integers(0, 2**63))
        case = f"{augmenter.settings()['augmenter']}, {per_text} copies with seed {seed} of {texts!r}"
        try:
            copies = augmenter.augment(texts, per_text, seed)
            fault = wrong_copy(texts, copies, only_words) or other_batches(
                augmenter, texts, copies, per_text, seed, rng
            )
            fault = fault or damaged_cache(augmenter, texts, copies, seed, budget.folder / f"{number}", rng)
        except Exception as error:
            yield Outcome(case, "traceback", f"{type(error).__name__}: {error}")
            continue
        yield Outcome(case, "wrong", fault) if fault else Outcome(case, HELD)


def wrong_copy(texts: list[str], copies: list[list[str]], only_words: bool) -> str:
    """Return what is wrong with a copy: something that must not change does."""
    from duonlp.augmentation import Protection

    protect = Protection(words=PROTECTED)
    for text, of_text in zip(texts, copies, strict=True):
        pieces = protect.pieces(text)
        fixed = pieces[::2] if only_words else [text[start:end] for start, end in protect.spans(text)]
        for copy in of_text:
            if bool(text.strip()) != bool(copy.strip()) or (len(pieces) == 1 and copy != text):
                return f"{copy!r} of {text!r}"
            place = 0
            for part in fixed:
                place = copy.find(part, place)
                if place < 0:
                    return f"{copy!r} of {text!r} lacks {part!r}"
                place += len(part)
            copy.encode()
    return ""


def other_batches(augmenter, texts, copies, per_text: int, seed: int, rng: np.random.Generator) -> str:
    """Return what differs if texts come in another order, alone, or more than once."""
    order = rng.permutation(len(texts))
    shuffled = augmenter.augment([texts[place] for place in order] + texts[:1], per_text, seed)
    if [copies[place] for place in order] + copies[:1] != shuffled:
        return f"in another order {shuffled!r}, not {copies!r}"
    alone = [augmenter.augment([text], 1, seed)[0] for text in texts]
    return "" if alone == [of_text[:1] for of_text in copies] else f"alone {alone!r}, not {copies!r}"


def damaged_cache(augmenter, texts, copies, seed: int, folder: Path, rng: np.random.Generator) -> str:
    """Return what a cache returns wrongly after random damage to its file."""
    from duonlp.augmentation import cached

    per_text = len(copies[0])
    if cached(augmenter, folder).augment(texts, per_text, seed) != copies:
        return "the cache differs from the augmenter"
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(data) + 1))
        way = rng.integers(0, 4)
        if way == 0:
            del data[place:]
        elif way == 1:
            data[place:place] = rng.bytes(int(rng.integers(1, 40)))
        elif way == 2 and place < len(data):
            data[place] ^= int(1 << rng.integers(0, 8))
        else:
            data[place : place + 9] = b""
    file.write_bytes(data)
    stored = cached(augmenter, folder)
    again = stored.augment(texts, per_text, seed), stored.augment(texts, per_text, seed)
    last = cached(augmenter, folder)
    final, names = last.augment(texts, per_text, seed), [path.name for path in folder.iterdir()]
    shutil.rmtree(folder)
    if again != (copies, copies) or final != copies:
        return f"after damage {again[0]!r}, not {copies!r}"
    return "" if not last.made and names == [file.name] else f"{last.made} copies made again; files {names}"
