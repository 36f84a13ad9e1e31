"""Versions and records that tell whose they are, which they are, and whether they are whole."""

import base64
import collections
import json
import random
import zlib

Version = collections.namedtuple("Version", "file writer number length")

_NOISE = base64.b64encode(random.Random(5).randbytes(3 << 18)).decode()
_TWICE = _NOISE + _NOISE
HEADER = 64
# Those that are updated in place, or mapped, are always so long.
FIXED = HEADER + 96 * 1024


class Torn(Exception):
    """Not one whole version. The text says how so."""


def body(number, length):
    """ASCII that differs from that of every version near it at every place."""
    start = number * 7919 % len(_NOISE)
    return _TWICE[start:start + length]


def checksum(file, writer, number, text):
    """Of all that a version says."""
    return zlib.crc32(f"{file} {writer} {number} {len(text)} {text}".encode())


def doc(file, writer, number, length):
    """A header of HEADER bytes and `length` of content."""
    text = body(number, length)
    head = f"soak {file} {writer} {number} {length} {checksum(file, writer, number, text):08x}"
    return (head.ljust(HEADER - 1) + "\n" + text).encode()


def json_doc(file, writer, number, length):
    """The same for json.dump: in lines, as a program's data would be."""
    text = body(number, length)
    return {
        "file": file, "writer": writer, "number": number, "length": length,
        "crc": checksum(file, writer, number, text),
        "lines": [text[at:at + 100] for at in range(0, length, 100)],
    }


def _judge(said, text, crc):
    if len(text) != said.length:
        raise Torn(f"{said}: but {len(text)} bytes of content")
    if checksum(said.file, said.writer, said.number, text) != crc:
        raise Torn(f"{said}: its checksum is another")
    return said


def parse(name, form, data):
    """The version that these bytes are. Torn: they are none, or that of another file."""
    try:
        if not data:
            raise Torn("empty")
        if form == "json":
            found = json.loads(data)
            said = Version(found["file"], found["writer"], found["number"], found["length"])
            _judge(said, "".join(found["lines"]), found["crc"])
        else:
            word, file, writer, number, length, crc = data[:HEADER].decode().split()
            if word != "soak":
                raise Torn(f"begins with {data[:HEADER]!r}")
            said = Version(file, int(writer), int(number), int(length))
            _judge(said, data[HEADER:].decode(), int(crc, 16))
    except (ValueError, KeyError, TypeError) as error:
        raise Torn(f"{len(data)} bytes that can't be read: {type(error).__name__} {error}") from error
    if said.file != name:
        raise Torn(f"{said} in {name}")
    return said


def record(file, writer, number, length):
    """One line of a log."""
    text = body(number, length)
    return f"{file} {writer} {number} {length} {checksum(file, writer, number, text):08x} {text}\n".encode()


def parse_record(name, line):
    """The record that this line (without its end) is."""
    try:
        file, writer, number, length, crc, text = line.decode().split(" ")
        said = Version(file, int(writer), int(number), int(length))
        crc = int(crc, 16)
    except ValueError as error:
        raise Torn(f"a record that can't be read: {line[:80]!r}") from error
    if file != name:
        raise Torn(f"{said} in {name}")
    return _judge(said, text, crc)
