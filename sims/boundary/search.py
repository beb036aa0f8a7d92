"""Searching processes' memory and files for pieces of what should not be there, in any usual encoding."""

import base64
import contextlib
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Bytes, as they are encoded, that must agree before a piece is called found: more than the names of the tensors, which
#: the release says openly and the blob's header repeats.
CONFIRMED = 64
#: Any copy of this many bytes of an encoded piece is found, wherever it begins: it holds a whole aligned word, and
#: enough around that for the confirmation.
SURELY_FOUND = CONFIRMED + 7

_WORD = 8
_FEWEST_DISTINCT = 4
_TABLE_BITS = 26
_CHUNK = 32 << 20
#: Mappings that are the kernel's and not the process's.
_KERNELS = ("[vvar]", "[vvar_vclock]", "[vsyscall]")
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")


def encodings(piece: bytes) -> dict[str, bytes]:
    """A piece as it may stand in memory. Base64 three times: where its groups begin depends on what stands before."""
    found = {"raw": piece, "hexadecimal": piece.hex().encode(), "HEXADECIMAL": piece.hex().upper().encode()}
    for start in range(3):
        whole = piece[start : start + (len(piece) - start) // 3 * 3]
        found[f"base64, from {start}"] = base64.b64encode(whole)
    return found


class Pieces:
    """Named pieces, and a search for them that takes about as long as reading the memory takes.

    Every word of eight bytes of every encoding, from every position, is known; the memory is looked at in aligned words
    only. Words of few different bytes, such as zeros, stand everywhere and are left out.
    """

    def __init__(self, pieces: Mapping[str, bytes], encode: Callable[[bytes], Mapping[str, bytes]] = encodings) -> None:
        self._names: list[str] = []
        texts: list[bytes] = []
        for name, piece in pieces.items():
            for encoding, text in encode(piece).items():
                if len(text) >= SURELY_FOUND:
                    self._names.append(f"{name} ({encoding})")
                    texts.append(text)
        # Between two texts stands what is nowhere else, so that no piece is found across them.
        gap = secrets.token_bytes(CONFIRMED)
        self._all = gap + gap.join(texts) + gap
        self._starts = np.cumsum([CONFIRMED] + [len(text) + CONFIRMED for text in texts])
        words = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self._all, np.uint8), _WORD)
        distinct = 1 + (np.diff(np.sort(words, axis=1), axis=1) != 0).sum(axis=1)
        places = CONFIRMED + np.flatnonzero(distinct[CONFIRMED:] >= _FEWEST_DISTINCT)
        keys = np.ascontiguousarray(words[places]).view(np.uint64).reshape(-1)
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]
        self._table = np.zeros(1 << _TABLE_BITS, bool)
        self._table[_hash(self._keys)] = True

    def found_in(self, data: bytes) -> set[str]:
        """The names of the pieces of which ``SURELY_FOUND`` bytes or more stand in ``data``."""
        memory = np.frombuffer(data, np.uint64, count=len(data) // _WORD)
        likely = np.flatnonzero(self._table[_hash(memory)])
        first, beyond = (np.searchsorted(self._keys, memory[likely], side=side) for side in ("left", "right"))
        there = np.flatnonzero(beyond > first)
        names: set[str] = set()
        for position, begin, end in zip(likely[there] * _WORD, first[there], beyond[there], strict=True):
            # The same word may stand in many places of the pieces.
            for place in self._places[begin:end]:
                name = self._names[int(np.searchsorted(self._starts, place, side="right")) - 1]
                if name not in names and self._confirmed(data, int(position), int(place), "base64" in name):
                    names.add(name)
        return names

    def _confirmed(self, data: bytes, position: int, place: int, urlsafe: bool) -> bool:
        before = min(CONFIRMED, position)
        there = data[position - before : position + CONFIRMED]
        here = self._all[place - before : place + CONFIRMED]
        if urlsafe:
            there = there.translate(_URLSAFE)
        left = right = 0
        while left < before and there[before - left - 1] == here[before - left - 1]:
            left += 1
        while before + right < min(len(there), len(here)) and there[before + right] == here[before + right]:
            right += 1
        return left + right >= CONFIRMED


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Multiplication by an odd constant spreads the words over the table (Knuth, volume 3, 6.4).
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _TABLE_BITS)


def memory_of(pid: int) -> Iterator[bytes]:
    """What a process holds in memory of its own: everything that it can write to or that is in no file, in chunks that
    overlap; it stops early if the process ends meanwhile.

    Raises:
        PermissionError: this process may not read another one's memory.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        mappings = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in mappings.splitlines():
                match = _MAPPING.match(line)
                assert match is not None, line
                begin, end, rights = int(match[1], 16), int(match[2], 16), match[3]
                if rights[0] != "r" or (rights[1] != "w" and match[4] != "0") or match[5] in _KERNELS:
                    continue
                for start in range(begin, end, _CHUNK):
                    # Gone since the list was made, or a device's.
                    with contextlib.suppress(OSError, ValueError, OverflowError):
                        memory.seek(start)
                        yield memory.read(min(_CHUNK + SURELY_FOUND + _WORD, end - start))


def search_process(pid: int, pieces: Pieces) -> set[str]:
    """The pieces in a process's memory. Raises as ``memory_of``."""
    found: set[str] = set()
    for chunk in memory_of(pid):
        found |= pieces.found_in(chunk)
    return found


def search_files(top: Path, pieces: Pieces) -> dict[str, set[str]]:
    """The pieces in a file, or in all files below a folder, by the file's name; those without any are left out."""
    found: dict[str, set[str]] = {}
    for path in [top, *top.rglob("*")]:
        # A file that goes away meanwhile, or a socket.
        with contextlib.suppress(OSError):
            if path.is_file() and (names := pieces.found_in(path.read_bytes())):
                found[path.name] = names
    return found


@contextlib.contextmanager
def holding(data: bytes) -> Iterator[int]:
    """A process that holds ``data`` in its memory and does nothing else; its number."""
    program = "import sys; held = sys.stdin.buffer.read(int(sys.argv[1])); print(flush=True); sys.stdin.buffer.read()"
    command = [sys.executable, "-c", program, str(len(data))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data)
        process.stdin.flush()
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def memory_can_be_read() -> bool:
    """Whether this process may read the memory of those that it started."""
    with holding(b"") as pid:
        try:
            return next(memory_of(pid), None) is not None
        except PermissionError:
            return False
