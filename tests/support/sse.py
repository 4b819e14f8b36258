"""Event streams as a client reads them (HTML standard, section 9.2.6), and their requests on a fake socket."""

from typing import NamedTuple


class Block(NamedTuple):
    """A block of a stream. type: `message` if the block names no type; "" for a block without data. retry: milliseconds."""

    type: str = ""
    data: str = ""
    id: str = ""
    retry: int = 0


def blocks(text: bytes) -> list[Block]:
    """Returns the blocks of a stream, without comments; all blocks must be whole."""
    lines = text.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines[-2:] == ["", ""] or text == b"", "half a block"
    found: list[Block] = []
    fields: dict[str, str] = {}
    for line in lines[:-1]:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            continue
        fields.pop("", None)
        if fields:
            assert fields.keys() <= {"event", "data", "id", "retry"}
            data = fields.get("data", "")
            type = fields.get("event", "message") or "message"
            found.append(Block(type if "data" in fields else "", data, fields.get("id", ""), int(fields.get("retry", 0))))
        fields = {}
    return found
