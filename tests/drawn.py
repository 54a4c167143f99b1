"""What hypothesis draws for several packages: files that were whole and have been spoilt."""

import csv
import io
from collections.abc import Callable, Sequence

import pytest
from hypothesis import strategies as st

CELLS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                " ",
                "nan",
                "NaN",
                "inf",
                "-inf",
                "-1",
                "1e999",
                "0_1",
                "1_0",
                "0x1",
                "1,5",
                "\ufeff",
            ),
            *(
                "../../x",
                "/etc/passwd",
                "..\\x",
                "C:\\x",
                "\\\\host\\x",
                "a/../../x",
                "~",
                ".",
                "..",
            ),
            *('"', "''", "=1+1", "\0", "a\0b", "a\nb", "a\r", "\u2028", "é", "名", "x" * 300, "٣"),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.floats().map(str),
)


@st.composite
def spoilt_tables(
    draw: st.DrawFn, rows: Sequence[Sequence[str]], *, delimiter: str = ",", changes: int = 2
) -> bytes:
    """A CSV file of `rows` (the first is the header) after a few changes, in any encoding."""
    rows = [list(row) for row in rows]
    for _ in range(draw(st.integers(1, changes))):
        row = draw(st.integers(0, len(rows) - 1))
        place = draw(st.integers(0, max(len(rows[row]) - 1, 0)))
        kind = draw(
            st.sampled_from(["cell", "cell", "header", "twice", "longer", "shorter", "column"])
        )
        if kind in ("cell", "header"):
            row = 0 if kind == "header" else row
            rows[row][place : place + 1] = [draw(CELLS)]
        elif kind == "twice":
            rows.append(list(rows[row]))
        elif kind == "longer":
            rows[row].insert(place, draw(CELLS))
        elif kind == "shorter":
            rows[row][place : place + 1] = []
        else:
            rows = [[*one, *one[place : place + 1]] for one in rows]
    file = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(rows)
    text, coding = (
        file.getvalue(),
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])),
    )
    raw = text.encode(coding, "replace")
    return raw if draw(st.booleans()) else draw(spoilt_bytes(raw, changes=1))


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes, *, changes: int = 3) -> bytes:
    """`whole` with a few bytes changed, or cut short, or with bytes put in between or left out."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, changes))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        kind = draw(st.sampled_from(["change", "change", "cut", "insert", "remove"]))
        some = draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8]))
        )
        if kind == "cut":
            del raw[at:]
        elif kind == "insert":
            raw[at:at] = some
        elif kind == "remove":
            del raw[at : at + len(some)]
        else:
            raw[at : at + len(some)] = some
    return bytes(raw)


def refused(
    function: Callable, *arguments: object, names: str, kinds: tuple = (ValueError, OSError)
) -> bool:
    """Whether it was refused, by an error of `kinds` whose one line has `names` in it."""
    try:
        function(*arguments)
    except kinds as error:
        told = str(error)
        assert names in told and "\n" not in told and len(told) < 2000, told
        return True
    except Exception as error:  # so that the message has the type
        pytest.fail(f"{type(error).__name__}: {error}")
    return False
