"""Published vectors as Qdrant takes them.

Without --url: one JSON line per batch on stdout, {"collection", "upsert": {"points": [...]}} or
{"collection", "delete": {"points": [...]}}; the inner object is the body of Qdrant's REST calls
PUT /collections/NAME/points and POST /collections/NAME/points/delete. Point ids must be UUIDs:
they are derived from kind and id, which stands in the payload.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from examples.following import Put, follow, parser
from topics.names import Kind
from topics.representation import Representation

_SPACE = uuid.UUID("7c9b3b52-9c8e-5f0e-9a52-0d8c4d6a1f10")


def point_id(kind: Kind, entity_id: str) -> str:
    """The same for the same entity, everywhere."""
    return str(uuid.uuid5(_SPACE, f"{kind}:{entity_id}"))


def upsert_body(kind: Kind, vectors: Sequence[Representation]) -> dict[str, Any]:
    """Body of PUT /collections/NAME/points."""
    points = []
    for one in vectors:
        assert one.vector is not None
        payload = {"id": one.id, "version": one.version, "event_ms": one.event_ms}
        points.append(
            {"id": point_id(kind, one.id), "vector": one.vector.tolist(), "payload": payload}
        )
    return {"points": points}


def delete_body(kind: Kind, ids: Sequence[str]) -> dict[str, Any]:
    """Body of POST /collections/NAME/points/delete."""
    return {"points": [point_id(kind, entity_id) for entity_id in ids]}


def json_put(kind: Kind) -> Put:
    """Lines on stdout."""

    def put(vectors: Sequence[Representation], deleted: Sequence[str]) -> None:
        name = f"headwater-{kind}"
        if vectors:
            line = {"collection": name, "upsert": upsert_body(kind, vectors)}
            sys.stdout.write(json.dumps(line) + "\n")
        if deleted:
            line = {"collection": name, "delete": delete_body(kind, deleted)}
            sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    return put


def client_put(client: Any, kind: Kind) -> Put:
    """Into a collection of a `qdrant_client.QdrantClient`, made at the first vector."""
    from qdrant_client import models

    name = f"headwater-{kind}"

    def put(vectors: Sequence[Representation], deleted: Sequence[str]) -> None:
        if vectors:
            points = [models.PointStruct(**p) for p in upsert_body(kind, vectors)["points"]]
            if not client.collection_exists(name):
                size = len(points[0].vector)
                config = models.VectorParams(size=size, distance=models.Distance.DOT)
                client.create_collection(name, vectors_config=config)
            client.upsert(name, points=points, wait=True)
        if deleted and client.collection_exists(name):
            selector = models.PointIdsList(points=delete_body(kind, deleted)["points"])
            client.delete(name, points_selector=selector, wait=True)

    return put


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--url", help="a Qdrant server, instead of JSON lines")
    arguments = options.parse_args()
    if arguments.url is None:
        follow(arguments, json_put)
        return
    from qdrant_client import QdrantClient

    client = QdrantClient(url=arguments.url)
    follow(arguments, lambda kind: client_put(client, kind))


if __name__ == "__main__":
    main()
