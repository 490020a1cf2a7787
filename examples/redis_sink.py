"""Published vectors in Redis: a hash `headwater:KIND:ID` with fields vector, version, event_ms.

The vector is little-endian float32: `numpy.frombuffer(r.hget(key, "vector"), "<f4")`. A deleted or
forgotten entity's key goes. A write of an older version never replaces a newer one's: one writer
carries versions in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import redis

from examples.following import Put, follow, parser
from topics.names import Kind
from topics.representation import Representation


def redis_key(kind: Kind, entity_id: str) -> str:
    return f"headwater:{kind}:{entity_id}"


def redis_put(client: redis.Redis, kind: Kind) -> Put:
    """One pipeline per batch."""

    def put(vectors: Sequence[Representation], deleted: Sequence[str]) -> None:
        pipeline = client.pipeline(transaction=False)
        for one in vectors:
            assert one.vector is not None
            pipeline.hset(
                redis_key(kind, one.id),
                mapping={
                    "vector": one.vector.astype("<f4").tobytes(),
                    "version": one.version,
                    "event_ms": one.event_ms,
                },
            )
        for entity_id in deleted:
            pipeline.delete(redis_key(kind, entity_id))
        pipeline.execute()

    return put


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--redis", default="redis://127.0.0.1:6379")
    arguments = options.parse_args()
    with redis.Redis.from_url(arguments.redis) as client:
        follow(arguments, lambda kind: redis_put(client, kind))


if __name__ == "__main__":
    main()
