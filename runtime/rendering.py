"""How one record of each topic reads as a line: for `consume`, and for the files of `join`."""

from __future__ import annotations

import base64
import time
from typing import Any, cast

import orjson
from confluent_kafka import Message

from topics.join_header import JoinHeader
from topics.names import REPRESENTATION_TOPICS, SIDE_TOPICS, UNDECODABLE, Kind
from topics.representation import decode_message


def json_line(name: str, message: Message) -> bytes:
    """One JSON line, without its line break, for a record of the topic `name` (without prefix).

    JSON values come as they are; a representation as id, vector and its headers; an undecodable
    record as its reason, coordinates, and its original bytes as `text`, or as `base64` where they
    are not UTF-8. Raises RecordInvalid or WireVersionError for a broken representation.
    """
    if name in REPRESENTATION_TOPICS:
        return orjson.dumps(_representation(name, message))
    if name == UNDECODABLE:
        return orjson.dumps(_undecodable(message))
    return _one_line(message.value() or b"null")


def text_line(name: str, message: Message) -> str:
    """The same for a person: where it lies, why it is there, then the line, shortened."""
    where = f"{message.partition()}:{message.offset()}"
    headers = headers_of(message)
    reason = f" [{headers['hw_reason']}]" if name in SIDE_TOPICS and "hw_reason" in headers else ""
    if name in REPRESENTATION_TOPICS:
        found = _representation(name, message)
        vector = found["vector"]
        shown = "deleted" if vector is None else " ".join(f"{x:+.3f}" for x in vector[:8])
        more = " …" if vector is not None and len(vector) > 8 else ""
        return f"{where} v{found['hw_version']} {found['id']}: {shown}{more}"
    line = (message.value() or b"null").decode("utf-8", errors="backslashreplace")
    return f"{where}{reason} {line if len(line) <= 400 else line[:400] + ' …'}"


def headers_of(message: Message) -> dict[str, str]:
    """Its headers as text."""
    headers = cast("list[tuple[str, Any]]", message.headers() or [])
    return {
        name: value if isinstance(value, str) else (value or b"").decode("utf-8", "replace")
        for name, value in headers
    }


def _representation(name: str, message: Message) -> dict[str, Any]:
    kind = cast(Kind, name.removeprefix("representations."))
    found = decode_message(message, kind=kind)
    headers: dict[str, Any] = headers_of(message)
    for header in ("hw_version", "hw_step", "hw_event_ms", "hw_produced_ms", "hw_dim"):
        headers[header] = int(headers[header])
    vector = None if found.vector is None else found.vector.tolist()
    return {"id": found.id, **headers, "vector": vector}


def _undecodable(message: Message) -> dict[str, Any]:
    said = JoinHeader.find(message.headers())
    stream, partition, offset = ("", -1, -1) if said is None else said.source
    line: dict[str, Any] = {
        "reason": headers_of(message).get("hw_reason", ""),
        "stream": stream,
        "partition": partition,
        "offset": offset,
    }
    value = message.value() or b""
    try:
        line["text"] = value.decode()
    except UnicodeDecodeError:
        line["base64"] = base64.b64encode(value).decode("ascii")
    return line


def _one_line(value: bytes) -> bytes:
    """JSON may hold line breaks between tokens (never inside strings): blanks mean the same."""
    return value.replace(b"\n", b" ").replace(b"\r", b" ")


def utc_time(ms: int) -> str:
    """Unix milliseconds for a person, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ms / 1000))
