"""Sentences to numbers as CLIP reads them: byte pairs (Sennrich et al. 2016; Radford et al. 2021).

A vocabulary is a list of pairs to be merged, the most frequent first. CLIP's is not shipped:
`read_vocabulary` takes the file that comes with its weights.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"
"""Behind the last letter of a word."""
CLIP_SIZE = 49_408
"""Tokens of CLIP's vocabulary."""
ORIGINAL = "bpe_simple_vocab_16e6"
"""In the first line of CLIP's own file, which holds more pairs than are used."""

# Over `_shape`, in which any letter is one of a to z and any digit 0.
_WORDS = re.compile(
    rf"{re.escape(START)}|{re.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
)


class Vocabulary:
    """What `encode` needs.

    Args:
        merges: pairs of tokens, the first to be merged first.
        numbers: token -> number; None for CLIP's order: bytes, bytes that end a word, merged
            pairs, start and end.

    Raises:
        ValueError: numbers that are not 0, 1, …, or lack a token.
    """

    def __init__(
        self, merges: Sequence[tuple[str, str]], numbers: Mapping[str, int] | None = None
    ) -> None:
        self._letters = _letters()
        single = list(self._letters.values())
        tokens = [*single, *(s + LAST for s in single), *map("".join, merges), START, END]
        if numbers is None:
            numbers = {token: number for number, token in enumerate(tokens)}
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise ValueError(f"numbers of {len(numbers)} tokens; expected 0, 1, … once each")
        if lacking := [token for token in tokens if token not in numbers]:
            raise ValueError(f"no number for the token {lacking[0]!r}")
        self._numbers = dict(numbers)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}

    def __len__(self) -> int:
        """Tokens."""
        return len(self._numbers)

    def encode(self, text: str) -> list[int]:
        """Numbers of the start, the text's tokens and the end.

        Letters are made small and composed (NFC), white space is one blank. Unlike in CLIP's own
        program, text that was decoded wrongly is not mended, and HTML's entities stay.
        """
        plain = " ".join(unicodedata.normalize("NFC", text).split()).lower()
        found = [self._numbers[START]]
        for match in _WORDS.finditer("".join(map(_shape, plain))):
            word = plain[match.start() : match.end()]
            if word in (START, END):
                found.append(self._numbers[word])
                continue
            letters = [self._letters[byte] for byte in word.encode()]
            found += [self._numbers[token] for token in self._merged(letters)]
        return [*found, self._numbers[END]]

    def _merged(self, letters: list[str]) -> list[str]:
        """The word's tokens: of all pairs side by side, the first of the list, again and again."""
        tokens = [*letters[:-1], letters[-1] + LAST]
        while len(tokens) > 1:
            best = min(pairwise(tokens), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            made, i = [], 0
            while i < len(tokens):
                joins = tuple(tokens[i : i + 2]) == best
                made.append("".join(best) if joins else tokens[i])
                i += 2 if joins else 1
            tokens = made
        return tokens


def read_vocabulary(path: str | Path, size: int = CLIP_SIZE) -> Vocabulary:
    """The vocabulary in a file of pairs or a folder.

    Args:
        path: CLIP's ``bpe_simple_vocab_16e6.txt.gz``, unpacked or not; a ``merges.txt`` as
            transformers has it, one pair a line behind the first; or a folder with that and a
            ``vocab.json``, token -> number.
        size: tokens that there must be, those of the weights.

    Raises:
        ValueError: another kind of file, or another number of tokens; the message tells both.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    file = path / "merges.txt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a vocabulary of byte pairs")
    if file.suffix not in (".txt", ".gz"):
        raise ValueError(f"{file}: a vocabulary must be a .txt or .txt.gz file of pairs")
    try:
        read = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        first, *lines = read.decode("utf-8").splitlines()
        pairs = [(a, b) for a, b in (line.split() for line in lines if line.strip())]
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file}: no list of byte pairs, two to a line: {error}") from None
    # Bytes, bytes that end a word, start and end.
    wanted = size - 2 * 256 - 2
    if ORIGINAL in first:
        pairs = pairs[:wanted]
    if len(pairs) != wanted or wanted < 0:
        raise ValueError(
            f"{file}: {len(pairs)} pairs make a vocabulary of {len(pairs) + size - wanted} tokens; "
            f"the weights have {size}"
        )
    try:
        return Vocabulary(pairs, _numbers(path / "vocab.json") if path.is_dir() else None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _numbers(file: Path) -> dict[str, int]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(type(n) is int for n in found.values()):
        raise ValueError("vocab.json: expected token -> number")
    return found


def _letters() -> dict[int, str]:
    """A visible letter for each byte: itself where that is visible, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    own = {byte: chr(byte) for byte in visible}
    return own | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def _shape(letter: str) -> str:
    """An ASCII character of the same kind: any letter, digit, blank or other one."""
    if letter.isascii():
        return letter
    kind = unicodedata.category(letter)[0]
    return {"L": "z", "N": "0", "Z": " "}.get(kind, "!")
