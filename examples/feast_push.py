"""Published vectors in a Feast online store, by a push source per kind.

A repository's `feature_store.yaml` says where the store is; `feature_view` defines the entity, its
push source and the feature view that `get_online_features(["headwater_user:vector"])` reads. Feast
has no deletion by push: a deleted entity's vector becomes empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.types import Array, Float32, Int64

from examples.following import Put, follow, parser
from topics.names import KINDS, Kind
from topics.representation import Representation


def feature_view(kind: Kind, batch_file: Path) -> tuple[Entity, FeatureView]:
    """What `FeatureStore.apply` takes. Feast wants a batch source beside a push source:
    `batch_file` is one that `headwater export` could write, and is never read by a push."""
    key = f"{kind}_id"
    entity = Entity(name=f"headwater_{kind}", join_keys=[key], value_type=ValueType.STRING)
    batch = FileSource(path=str(batch_file), timestamp_field="event_timestamp")
    return entity, FeatureView(
        name=f"headwater_{kind}",
        entities=[entity],
        ttl=timedelta(days=365),
        schema=[Field(name="vector", dtype=Array(Float32)), Field(name="version", dtype=Int64)],
        source=PushSource(name=f"headwater_{kind}_push", batch_source=batch),
        online=True,
    )


def feast_put(store: FeatureStore, kind: Kind) -> Put:
    """Push to the online store alone."""

    def put(vectors: Sequence[Representation], deleted: Sequence[str]) -> None:
        rows = [
            {
                f"{kind}_id": one.id,
                "vector": one.vector.tolist() if one.vector is not None else [],
                "version": one.version,
                "event_timestamp": datetime.fromtimestamp(one.event_ms / 1000, UTC),
            }
            for one in vectors
        ]
        now = datetime.now(UTC)
        rows += [
            {f"{kind}_id": i, "vector": [], "version": -1, "event_timestamp": now} for i in deleted
        ]
        if rows:
            store.push(f"headwater_{kind}_push", pd.DataFrame(rows), to=PushMode.ONLINE)

    return put


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repo", type=Path, required=True, help="with feature_store.yaml")
    arguments = options.parse_args()
    store = FeatureStore(repo_path=str(arguments.repo))
    for kind in arguments.kind or KINDS:
        store.apply(list(feature_view(kind, arguments.repo / f"{kind}.parquet")))
    follow(arguments, lambda kind: feast_put(store, kind))


if __name__ == "__main__":
    main()
