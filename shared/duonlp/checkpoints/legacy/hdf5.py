"""List the datasets of an HDF5 file, such as ``tf_model.h5``, without the HDF5 library.

Only what holds weights is read: groups, and datasets of floats or integers whose values lie in one piece, which is how Keras
writes them; everything else in a file (attributes, links to other files, filters) is skipped or refused. The HDF5 library can
be crashed by a corrupt file, opens files by itself and hides where the values are.

Sections in the docstrings are those of the HDF5 File Format Specification, version 3.0
(https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from duonlp.checkpoints.open_files import OpenFile
from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.errors import CheckpointError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DATASPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, FILTERS, CONTINUATION, SYMBOL_TABLE = 1, 2, 3, 6, 8, 11, 16, 17
"""Types of the header messages that are read (section IV.A.2)."""

FIXED_POINT, FLOATING_POINT = 0, 1
IEEE = {2: (15, 10, 5, 0, 10, 15), 4: (31, 23, 8, 0, 23, 127), 8: (63, 52, 11, 0, 52, 1023)}
"""Position of the sign, positions and sizes of exponent and mantissa in bits, and exponent bias, by bytes of a float."""

COMPACT, CONTIGUOUS = 0, 1
MOST_OBJECTS, MOST_DEPTH, MOST_DIMENSIONS, MOST_BLOCKS, MOST_BYTES = 200_000, 64, 32, 1000, 64 << 20
"""Bounds of a file's structure, far above those of a model: also of the blocks of a header, and of the bytes of one."""


def list_datasets(file: OpenFile) -> dict[str, StoredTensor]:
    """Return the datasets of an HDF5 file by their paths, such as ``bert/tf_bert_model/bert/pooler/dense/kernel:0``.

    Raises:
        CheckpointError: the file is truncated or corrupt, or a dataset is of a dtype or layout that is not supported.
    """
    try:
        reader = _Reader(file)
        datasets = {path: reader.dataset(path, messages) for path, messages in reader.objects()}
        _check_apart(datasets.values())
        return datasets
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not a valid HDF5 file ({str(error)[:200]}); it is truncated or corrupt: download or save it again"
        ) from None


def _check_apart(datasets: Iterable[StoredTensor]) -> None:
    """Raise ValueError if two datasets share bytes: the format has no checksums that would reveal a wrong address."""
    end, name = 0, ""
    for tensor in sorted((t for t in datasets if 0 not in t.shape), key=lambda t: t.offset):
        if tensor.offset < end:
            raise ValueError(f"the datasets {name!r} and {tensor.name!r} overlap")
        end, name = tensor.offset + math.prod(tensor.shape) * tensor.dtype.itemsize, tensor.name


@dataclass(frozen=True)
class _Bytes:
    """Bytes of a file, and where they start in it; reading beyond their end raises ValueError."""

    data: bytes
    start: int

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self.slice(at, size).data, "little")

    def slice(self, at: int, size: int) -> "_Bytes":
        if at < 0 or size < 0 or at + size > len(self.data):
            raise ValueError(f"{size} bytes at {self.start + at} are beyond the end of their block")
        return _Bytes(self.data[at : at + size], self.start + at)


Messages = list[tuple[int, _Bytes]]


class _Reader:
    """The structure of one file.

    Attributes:
        file: The file.
        offset_size: Bytes of an address.
        length_size: Bytes of a length.
    """

    def __init__(self, file: OpenFile):
        self.file = file
        head = self.block(0, min(96, file.size))
        if head.data[:8] != SIGNATURE:
            raise ValueError("it does not start with the signature of HDF5")
        version = head.number(8, 1)
        if version not in (0, 1, 2, 3):
            raise ValueError(f"a superblock of version {version}")
        self.offset_size, self.length_size = head.slice(9 if version > 1 else 13, 2).data
        if self.offset_size not in (4, 8) or self.length_size not in (4, 8):
            raise ValueError(f"addresses of {self.offset_size} and lengths of {self.length_size} bytes")
        # Section II.A: four addresses and the entry of the root group, or three addresses and that of its header.
        addresses = {0: 24, 1: 28}.get(version, 12)
        if head.number(addresses, self.offset_size) != 0:
            raise ValueError("a base address that is not 0")
        self.root = self.address(head, addresses + self.offset_size * (5 if version < 2 else 3))

    def block(self, address: int, size: int) -> _Bytes:
        """Return bytes of the file."""
        if not 0 <= size <= MOST_BYTES or address < 0 or address + size > self.file.size:
            raise ValueError(f"{size} bytes at {address} of a file of {self.file.size}")
        return _Bytes(self.file.read_bytes(address, size), address)

    def address(self, block: _Bytes, at: int) -> int:
        return block.number(at, self.offset_size)

    def objects(self) -> Iterator[tuple[str, Messages]]:
        """Yield the path and the header messages of every dataset."""
        groups: list[tuple[str, int]] = [("", self.root)]
        visited, count = {self.root}, 0
        while groups:
            path, header = groups.pop()
            if path.count("/") > MOST_DEPTH:
                raise ValueError(f"groups nested more than {MOST_DEPTH} deep")
            names: set[str] = set()
            for name, address in self.links(self.messages(header)):
                if name in names or not name or "/" in name or (count := count + 1) > MOST_OBJECTS:
                    raise ValueError(f"the name {name!r} in the group {path!r}")
                names.add(name)
                child = f"{path}/{name}".removeprefix("/")
                if address in visited:
                    raise ValueError(f"{child!r} is in two places")
                visited.add(address)
                messages = self.messages(address)
                types = {kind for kind, _ in messages}
                if types & {SYMBOL_TABLE, LINK_INFO, LINK}:
                    groups.append((child, address))
                elif DATATYPE in types and LAYOUT in types:
                    yield child, messages

    def messages(self, address: int) -> Messages:
        """Return the header messages of an object as (type, data) (section IV.A.1)."""
        if self.block(address, 4).data == b"OHDR":
            return self._messages_2(address)
        prefix = self.block(address, 16)
        if prefix.number(0, 1) != 1:
            raise ValueError(f"an object header of version {prefix.number(0, 1)} at {address}")
        return self._collect(self.block(address + 16, prefix.number(8, 4)), self._split_1, 0)

    def _messages_2(self, address: int) -> Messages:
        flags = self.block(address, 6).number(5, 1)
        at = address + 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16)
        width = 1 << (flags & 3)
        size = self.block(at, width).number(0, width)
        ordered = bool(flags & 4)
        return self._collect(self.block(at + width, size), lambda block: self._split_2(block, ordered), 4)

    def _collect(self, first: _Bytes, split: Callable[[_Bytes], Iterator[tuple[int, _Bytes]]], around: int) -> Messages:
        """Return the messages of a header's blocks; continuations have `around` bytes before and after theirs."""
        messages: Messages = []
        blocks, seen = [first], {first.start}
        while blocks:
            for kind, data in split(blocks.pop(0)):
                if kind != CONTINUATION:
                    messages.append((kind, data))
                    continue
                start, size = self.address(data, 0), data.number(self.offset_size, self.length_size)
                block = self.block(start, size)
                if start in seen or len(seen) > MOST_BLOCKS or (around and block.data[:4] != b"OCHK"):
                    raise ValueError(f"a continuation of a header at {start}")
                seen.add(start)
                blocks.append(block.slice(around, size - 2 * around))
        return messages

    def _split_1(self, block: _Bytes) -> Iterator[tuple[int, _Bytes]]:
        at = 0
        while at + 8 <= len(block.data):
            kind, size, flags = block.number(at, 2), block.number(at + 2, 2), block.number(at + 4, 1)
            yield self._unshared(kind, flags), block.slice(at + 8, size)
            at += 8 + size

    def _split_2(self, block: _Bytes, ordered: bool) -> Iterator[tuple[int, _Bytes]]:
        at, prefix = 0, 6 if ordered else 4
        while at + prefix <= len(block.data):
            kind, size, flags = block.number(at, 1), block.number(at + 1, 2), block.number(at + 3, 1)
            yield self._unshared(kind, flags), block.slice(at + prefix, size)
            at += prefix + size

    def _unshared(self, kind: int, flags: int) -> int:
        if flags & 2 and kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS, LINK, LINK_INFO, SYMBOL_TABLE):
            raise ValueError(f"a shared header message of type {kind}")
        return kind

    def links(self, messages: Messages) -> Iterator[tuple[str, int]]:
        """Yield the name and the address of each object in a group."""
        for kind, data in messages:
            if kind == SYMBOL_TABLE:
                yield from self._symbols(self.address(data, 0), self.address(data, self.offset_size))
            elif kind == LINK:
                yield self._link(data)
            elif kind == LINK_INFO:
                at = 2 + 8 * bool(data.number(1, 1) & 1)
                if data.number(at, self.offset_size) != (1 << 8 * self.offset_size) - 1:
                    raise ValueError(
                        'a group whose links are in a fractal heap: write it with h5py\'s libver="earliest"'
                    )

    def _link(self, data: _Bytes) -> tuple[str, int]:
        """Return name and address of a link message (section IV.A.2.g)."""
        flags, at = data.number(1, 1), 2
        if flags & 8:
            if data.number(at, 1) != 0:
                raise ValueError("a link that is not a hard link")
            at += 1
        at += 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        size = data.number(at, width)
        name = data.slice(at + width, size).data.decode()
        return name, self.address(data, at + width + size)

    def _symbols(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """Yield the links of a group in a B-tree (section III.A.1) with names in a local heap (III.D)."""
        o, length = self.offset_size, self.length_size
        head = self.block(heap, 8 + 2 * length + o)
        if head.data[:4] != b"HEAP":
            raise ValueError(f"no local heap at {heap}")
        names = self.block(self.address(head, 8 + 2 * length), head.number(8, length)).data
        nodes, seen = [tree], {tree}
        while nodes:
            at = nodes.pop(0)
            node = self.block(at, 8 + 2 * o)
            kind, count = node.data[:4], node.number(6, 2)
            if kind == b"TREE" and node.number(4, 1) == 0:
                keys = self.block(at + 8 + 2 * o, count * (length + o))
                children = [self.address(keys, i * (length + o) + length) for i in range(count)]
                if seen & set(children) or len(set(children)) < count:
                    raise ValueError(f"a loop in the B-tree at {tree}")
                seen.update(children)
                nodes[:0] = children
            elif kind == b"SNOD":
                entry = 2 * o + 24
                entries = self.block(at + 8, count * entry)
                for i in range(count):
                    start, header = self.address(entries, i * entry), self.address(entries, i * entry + o)
                    end = names.find(b"\0", start)
                    if entries.number(i * entry + 2 * o, 4) == 2 or not 0 <= start < end:
                        raise ValueError(f"a link in the group of the B-tree at {tree} that is not a hard link")
                    yield names[start:end].decode(), header
            else:
                raise ValueError(f"no node of a group at {at}")

    def dataset(self, path: str, messages: Messages) -> StoredTensor:
        """Return a dataset as a tensor; raise CheckpointError if it is of an unsupported kind."""
        parts = dict(messages)
        if DATASPACE not in parts:
            raise ValueError(f"the dataset {path!r} has no shape")
        if FILTERS in parts:
            raise CheckpointError(
                f"{self.file}: the dataset {path!r} is compressed; write the file again without, for instance with "
                "`h5repack -l CONTI -f NONE`"
            )
        shape, dtype = self._shape(parts[DATASPACE]), self._dtype(path, parts[DATATYPE])
        layout = parts[LAYOUT]
        version, kind = layout.number(0, 1), layout.number(1, 1)
        if version not in (3, 4) or kind not in (COMPACT, CONTIGUOUS):
            raise CheckpointError(
                f"{self.file}: the dataset {path!r} is not stored in one piece; write the file again with contiguous "
                "datasets, for instance with `h5repack -l CONTI`"
            )
        if kind == COMPACT:
            values = layout.slice(4, layout.number(2, 2))
            start, size = values.start, len(values.data)
        else:
            start, size = self.address(layout, 2), layout.number(2 + self.offset_size, self.length_size)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes == 0:
            start = size = 0
        if size != nbytes or start + size > self.file.size or max(shape, default=0) > self.file.size:
            raise ValueError(f"the dataset {path!r} of shape {list(shape)} has {size} bytes at {start}")
        return StoredTensor(self.file, path, shape, dtype, start)

    def _shape(self, data: _Bytes) -> tuple[int, ...]:
        """Return the dimensions of a dataspace message (section IV.A.2.b)."""
        version, rank = data.number(0, 1), data.number(1, 1)
        if version not in (1, 2) or rank > MOST_DIMENSIONS or (version == 2 and data.number(3, 1) == 2):
            raise ValueError(f"a dataspace of version {version} and rank {rank}")
        start = 8 if version == 1 else 4
        return tuple(data.number(start + i * self.length_size, self.length_size) for i in range(rank))

    def _dtype(self, path: str, data: _Bytes) -> np.dtype:
        """Return the NumPy dtype of a datatype message (section IV.A.2.d)."""
        kind, bits, size = data.number(0, 1) & 15, data.number(1, 3), data.number(4, 4)
        if kind == FIXED_POINT and size in (1, 2, 4, 8) and data.number(10, 2) == 8 * size:
            return np.dtype(f"{'>' if bits & 1 else '<'}{'i' if bits & 8 else 'u'}{size}")
        if kind == FLOATING_POINT and size in IEEE and not bits & 64:
            fields = bits >> 8 & 255, *data.slice(12, 4).data, data.number(16, 4)
            if fields == IEEE[size]:
                return np.dtype(f"{'>' if bits & 1 else '<'}f{size}")
        raise CheckpointError(
            f"{self.file}: the dataset {path!r} holds neither float16, float32, float64 nor integers; write it in one of these"
        )
