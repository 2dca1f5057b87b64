"""The part of the picture that mp4 and Matroska tell players to show, of which PyAV does not tell."""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

Part = tuple[bytes, int, int]  # the kind of a box or element, and where its content begins and ends
BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
ENTRY_BYTES = 78  # of a visual sample entry, before its boxes (ISO/IEC 14496-12)
SEGMENT, TRACKS, TRACK, VIDEO = (bytes.fromhex(text) for text in ("18538067", "1654ae6b", "ae", "e0"))
SIZES = (b"\xb0", b"\xba")  # width and height of a Matroska video
CROPS = tuple(bytes.fromhex(text) for text in ("54cc54dd", "54bb54aa"))  # left and right, top and bottom


def shown_share(path: Path) -> float:
    """The smallest fraction of the picture, 0..1, that a crop rectangle of a track leaves to be shown; 1 without."""
    with path.open("rb") as file:
        head, size = file.read(4), path.stat().st_size
        shares = _matroska(file, size) if head == b"\x1aE\xdf\xa3" else _mp4(file, 0, size)
        return min(shares, default=1.0)


def _mp4(file: BufferedReader, offset: int, end: int) -> Iterator[float]:
    for kind, start, stop in boxes(file, offset, end):
        if kind in BOXES:
            yield from _mp4(file, start, stop)
        for _, entry, entry_end in boxes(file, start + 8, stop) if kind == b"stsd" else ():
            for inner, place, _ in boxes(file, entry + ENTRY_BYTES, entry_end):
                if inner == b"clap":
                    width, height = (_number(file, entry + 24 + 2 * side, 2) for side in (0, 1))
                    numbers = [_number(file, place + 4 * index, 4) for index in range(4)]
                    shown = numbers[0] / max(numbers[1], 1) * numbers[2] / max(numbers[3], 1)
                    yield shown / max(width * height, 1)


def boxes(file: BufferedReader, offset: int, end: int) -> Iterator[Part]:
    """The boxes of an mp4 between two offsets."""
    while offset + 8 <= end:
        length, kind, header = _number(file, offset, 4), _read(file, offset + 4, 4), 8
        if length == 1:  # a 64-bit length follows
            length, header = _number(file, offset + 8, 8), 16
        yield kind, offset + header, min(offset + length, end) if length else end
        if length < header:
            return
        offset += length


def _matroska(file: BufferedReader, end: int) -> Iterator[float]:
    for track in _inside(file, 0, end, SEGMENT, TRACKS, TRACK, VIDEO):
        values = {kind: _number(file, start, stop - start) for kind, start, stop in _elements(file, *track)}
        shown = 1.0
        for kind, crops in zip(SIZES, CROPS, strict=True):
            hidden = values.get(crops[:2], 0) + values.get(crops[2:], 0)
            shown *= max(1 - hidden / max(values.get(kind, 0), 1), 0)
        yield shown


def _inside(file: BufferedReader, offset: int, end: int, kind: bytes, *kinds: bytes) -> Iterator[tuple[int, int]]:
    for found, start, stop in _elements(file, offset, end):
        if found == kind:
            yield from _inside(file, start, stop, *kinds) if kinds else ((start, stop),)
            if kind == TRACKS:  # clusters follow
                return


def _elements(file: BufferedReader, offset: int, end: int) -> Iterator[Part]:
    while offset < end:
        header = _read(file, offset, 12)
        kind = 9 - header[0].bit_length() if header else 9  # how many bytes it has, by its leading zeros
        length = 9 - header[kind].bit_length() if kind < min(len(header), 9) else 9
        if length > 8:
            return
        unknown = 2 ** (7 * length) - 1
        size = int.from_bytes(header[kind : kind + length]) & unknown
        start = offset + kind + length
        stop = end if size == unknown else min(start + size, end)
        yield header[:kind], start, stop
        offset = stop


def _number(file: BufferedReader, offset: int, length: int) -> int:
    return int.from_bytes(_read(file, offset, min(length, 8)))


def _read(file: BufferedReader, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
