"""The weights of Transformers 4's TensorFlow and Flax models, registered for the attacks of ``tests.attack.formats``."""

from collections.abc import Callable
from pathlib import Path

from tests.attack.file_formats import read_checkpoint
from tests.attack.formats import fuzzed
from tests.reference.record_legacy import unpack


def recorded(name: str, file: str) -> Callable[[Path], Path]:
    """Return a writer of a recorded checkpoint, of which one file is mutated."""

    def write(folder: Path) -> Path:
        unpack(name, folder / "model")
        return folder / "model" / file

    return write


@fuzzed("tf_model.h5", "bytes", write=recorded("tf-bert-masked-lm", "tf_model.h5"))
def read_tensorflow(file: Path) -> None:
    read_checkpoint(file.parent)


@fuzzed("flax_model.msgpack", "bytes", write=recorded("flax-bert-masked-lm", "flax_model.msgpack"))
def read_flax(file: Path) -> None:
    read_checkpoint(file.parent)


@fuzzed("tf_model.h5.index.json", "json", write=recorded("tf-bert-masked-lm-sharded", "tf_model.h5.index.json"))
def read_tensorflow_index(file: Path) -> None:
    read_checkpoint(file.parent)
