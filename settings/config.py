"""The one config of a stack: what every process must agree on, and what each may tune.

Sections that all processes must agree on, because topics or the store are laid out by them:
`kafka.topic_prefix`, `kinds`, `slots`, `domains`, `events`, `model`, `store.row`. The others may
change at a restart. `settings.load` reads a file into a `Config`; unknown keys are errors.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from settings import models
from settings.credentials import literal_secrets
from settings.duration import DurationMs
from settings.lifetimes import AdmissionConfig, ExpiryConfig
from settings.optimizers import OptimizerConfig
from settings.publishing import PublishConfig
from settings.section import Name, Section
from settings.techniques import TechniqueConfig

_ADDRESS = re.compile(r"(?:[^\s:,\[\]]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})")
KeepRate = Annotated[float, Field(ge=1e-6, le=1)]

IMPLICIT_SLOTS: dict[str, Literal["user", "item", "context"]] = {
    "user_id": "user",
    "item_id": "item",
    "domain": "context",
}
"""Slots that every impression has by its own fields; a config neither lists nor redefines them."""


class KafkaConfig(Section):
    bootstrap: str = ""
    """host:port[,host:port] of a broker of your own; empty = `headwater up` starts one."""
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9.-]{0,60}$")] = "headwater"
    """Every topic is named `<topic_prefix>.<name>`."""
    events_prefix: Annotated[str, Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9.-]{0,60})?$")] = ""
    """Prefix of `impressions` and `conversions` where they are not one's own: a replayed join that
    takes over reads the live events and writes topics of its own. Empty = topic_prefix."""
    partitions: Annotated[int, Field(ge=1, le=1000)] = 2
    """Partitions of every event, sample and representation topic that headwater creates."""
    replication: Annotated[int, Field(ge=1, le=10)] = 1
    """Replication factor of topics that headwater creates."""
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Handed to librdkafka as they are (security.protocol, sasl.*, ssl.*), and to Flink's client in
    its words. A value may say where it is, `file:PATH` or `env:NAME`; a secret must."""

    @field_validator("bootstrap")
    @classmethod
    def _brokers_have_ports(cls, bootstrap: str) -> str:
        for address in bootstrap.split(",") if bootstrap else ():
            found = _ADDRESS.fullmatch(address)
            if found is None or not 0 < int(found[1]) < 65_536:
                raise ValueError(f"expected host:port[,host:port], got {address!r}")
        return bootstrap

    @field_validator("extra")
    @classmethod
    def _secrets_are_elsewhere(
        cls, extra: dict[str, str | int | float | bool]
    ) -> dict[str, str | int | float | bool]:
        if literal := literal_secrets(extra):
            raise ValueError(
                f"{', '.join(literal)}: a secret does not belong into a config, which is copied and"
                ' shown; expected where it is, "file:PATH" or "env:NAME"'
            )
        return extra


class EventsConfig(Section):
    future_bound: DurationMs = 86_400_000
    """An event this far ahead of its partition's running event time (or of the wall clock) is
    `undecodable`, as from the future, and does not move the watermark."""
    bytes_max: Annotated[int, Field(ge=1_000, le=100_000_000)] = 1_000_000
    """`produce` refuses an event larger than this, by line number; of one that another producer got
    in, `undecodable` keeps this many bytes."""


class KindConfig(Section):
    window: DurationMs = 86_400_000
    """A conversion of this kind belongs to an impression iff 0 <= t_conv - t_imp <= window."""
    value: Literal["first", "last", "sum", "max"] = "first"
    """What a sample's `values` holds where an impression has several conversions of this kind."""


class SlotConfig(Section):
    side: Literal["user", "item", "context"] = "context"
    """Which tower reads it: the user's, the item's, or only the mix tower (context)."""
    type: Literal["categorical", "multi", "numeric", "vector", "sequence", "similarity"] = (
        "categorical"
    )
    """categorical = string; multi = list of strings; numeric = number; vector = list of numbers;
    sequence = list of {"item_id", "event_ms", ...}; similarity = the cosine of two features that
    are vectors (`of`), bucketed and coded as MNSE."""
    dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Length of a `vector` slot's value; required there, refused elsewhere."""
    length_max: Annotated[int, Field(ge=1, le=1000)] = 20
    """Newest entries of a `multi` or `sequence` slot that the model reads."""

    encoder: Literal["bucket", "mnse"] = "bucket"
    """Of a `numeric` slot: one row per half octave, or MNSE: one row per digit of each base."""
    bases: Annotated[tuple[Annotated[int, Field(ge=2, le=36)], ...], Field(min_length=1)] = (2, 3)
    """MNSE's numeral systems."""
    bits: Annotated[int, Field(ge=1, le=62)] = 20
    """MNSE: whole numbers below 2^bits; larger ones are held there."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """MNSE: a number is multiplied by it, then rounded."""
    of: tuple[Name, ...] = ()
    """The two features that a `similarity` slot compares; neither need be a slot itself."""

    @model_validator(mode="after")
    def _of_belongs_to_similarity(self) -> SlotConfig:
        wanted = 2 if self.type == "similarity" else 0
        if len(self.of) != wanted:
            raise ValueError(f"a slot of type {self.type!r} has {wanted} features in `of`")
        return self

    @model_validator(mode="after")
    def _dim_belongs_to_vector(self) -> SlotConfig:
        if self.type == "vector" and self.dim is None:
            raise ValueError("a slot of type 'vector' needs dim = <its length>")
        if self.type != "vector" and self.dim is not None:
            raise ValueError(f"dim is for slots of type 'vector', this one is {self.type!r}")
        return self


class JoinConfig(Section):
    policy: Literal["wait", "correct"] = "wait"
    """wait = one `final` sample per impression when its last window closes; correct = an `early`
    sample, a `correction` per kind that converts later, and a `final`."""
    elapsed: DurationMs = 0
    """Policy `correct`: event time between an impression and its `early` sample."""
    negatives_kept: KeepRate = 1.0
    """Share of impressions whose negatives reach `samples`, drawn from the impression's id; all
    positives do. Samples carry it as `keep_rate`, and the trainer's loss corrects for it."""
    negatives_kept_by_domain: dict[Name, KeepRate] = Field(default_factory=dict)
    """The same for single domains."""
    lateness: DurationMs = 5_000
    """How far out of order events may come; the watermark trails the newest event by this."""
    idle_timeout: DurationMs = 5_000
    """A partition silent for this long no longer holds the watermark back; 0s = never (bounded)."""
    checkpoint_interval: DurationMs = 500
    """Samples become visible at checkpoints, so this is a part of freshness."""
    transaction_timeout: DurationMs = 3_600_000
    """The longest outage of the join without loss; must not exceed the broker's
    transaction.max.timeout.ms."""
    parallelism: Annotated[int, Field(ge=1, le=1024)] = 1
    """Tasks. One reads, joins and writes in a thread each, which fills two cores; more than one
    exchange every event by its key."""
    state_backend: Literal["hashmap", "rocksdb"] = "hashmap"
    managed_memory_mb: Annotated[int, Field(ge=64)] = 512
    """RocksDB's memory in the join (state_backend = "rocksdb")."""


class ModelConfig(Section):
    name: str = "lfm4ads"
    """One of `headwater models`."""
    embedding_dim: Annotated[int, Field(ge=1, le=512)] = 16
    """Width of the `shared` embedding set of every slot."""
    tower_dims: tuple[Annotated[int, Field(ge=1)], ...] = (64, 32)
    """Hidden widths of the user and the item tower; the last one is the width of UR and IR."""
    first_order: bool = True
    """A linear term of every slot's vectors beside the deep part, so that a row learns its own rate
    from its first gradient on; the papers' nets have none."""
    cross_layers: Annotated[int, Field(ge=0, le=10)] = 2
    mix_dims: tuple[Annotated[int, Field(ge=1)], ...] = (64, 32)
    """Hidden widths of the mix tower's MLP; CR is the activation of its last hidden layer."""
    delayed_feedback: Literal["vanilla", "fnw", "fnc", "es_dfm", "defer", "defuse"] = "fnw"
    """Loss over policy `correct`'s samples (see `trainer/loss.py`); policy `wait` has plain BCE.
    es_dfm, defer and defuse gain over fnw where `join.elapsed` lets most conversions in."""
    lr: models.LrOptions = models.LrOptions()
    fm: models.FmOptions = models.FmOptions()
    dcn: models.DcnOptions = models.DcnOptions()
    mmoe: models.MmoeOptions = models.MmoeOptions()
    ple: models.PleOptions = models.PleOptions()
    stem: models.StemOptions = models.StemOptions()
    stem_al: models.StemAuxiliaryOptions = models.StemAuxiliaryOptions()
    ame: models.AmeOptions = models.AmeOptions()
    crocodile: models.CrocodileOptions = models.CrocodileOptions()
    multi_embedding: models.MultiEmbeddingOptions = models.MultiEmbeddingOptions()
    gwpfm: models.GwpfmOptions = models.GwpfmOptions()
    tim: models.TimOptions = models.TimOptions()
    rankmixer: models.RankMixerOptions = models.RankMixerOptions()
    rankup: models.RankUpOptions = models.RankUpOptions()
    crossdistil: models.CrossDistilOptions = models.CrossDistilOptions()
    lfm4ads: models.Lfm4AdsOptions = models.Lfm4AdsOptions()

    @property
    def own(self) -> Section | None:
        """The named model's own options; None for a model without any."""
        options: Section | None = getattr(self, self.name, None)
        return options if isinstance(options, Section) else None


class TrainerConfig(Section):
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """torch CPU threads; fixed, so that a run can be repeated bit by bit."""
    batch_samples_max: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    batch_wait: DurationMs = 50
    """Under cut_by = "time": a batch closes when full or this long after its first sample."""
    cut_by: Literal["time", "count"] = "time"
    """count = batches, commits and versions are cut by sample and step count alone, so that the
    same log gives the same bytes whatever happened in between."""
    commit_every: DurationMs = 500
    """Under cut_by = "time"."""
    commit_every_steps: Annotated[int, Field(ge=1)] = 10
    """Under cut_by = "count"."""
    evaluation_window: DurationMs = 3_600_000
    """Event time over which progressive metrics are also kept apart; the status shows the newest
    two windows beside the whole run."""
    seed: int = 0


class EvaluationConfig(Section):
    arms: bool = False
    """Score the model of the first commit (frozen) and of the last boundary (daily) beside the live
    one, on the same share of impressions."""
    arms_every: DurationMs = 86_400_000
    """Event time between two boundaries."""
    arms_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of impressions that all arms predict."""


class StoreConfig(Section):
    cache_rows_max: Annotated[int, Field(ge=1024, le=1_500_000_000)] = 1_000_000
    """Rows of the hot slab; the rest live in RocksDB. Full means evict, never fail."""
    eviction: Literal["clock", "lru", "lfu", "time"] = "clock"
    """Which row goes when the slab is full: clock = counting CLOCK, lru = unused for the most
    batches, lfu = learnt from least often, time = last learnt from longest ago in event time."""
    reads: Literal["auto", "mmap", "direct"] = "auto"
    """How cold rows are read. mmap = through the page cache, fastest while the tables fit in
    memory; direct = from the disk, many reads at a time; auto = by their size at opening."""


class CheckpointsConfig(Section):
    every: DurationMs = 600_000
    """A checkpoint of the store by hard links, while training goes on; 0s = none."""
    kept: Annotated[int, Field(ge=1)] = 3
    """Of the newest, in `directory` and in `copy_to` alike."""
    hourly: Annotated[int, Field(ge=0)] = 0
    """Beside them the newest of each of so many hours that have one."""
    daily: Annotated[int, Field(ge=0)] = 0
    directory: str = ""
    """On the store's own disk, since hard links cannot leave it; empty = STORE.checkpoints."""
    copy_to: str = ""
    """A directory on another disk, of this store alone: each checkpoint is copied there, tables
    that it holds already are not. Hard links share the store's bytes; only a copy survives a
    damaged table. Empty = no copies."""
    scrub_every: DurationMs = 86_400_000
    """So often a copy first reads back the tables that it would link; 0s = never."""


class MetricsConfig(Section):
    host: str = "127.0.0.1"
    """Where every process serves /metrics; beyond loopback only by your own choice."""


class Config(Section):
    """A whole stack. Frozen; built by `settings.load.load_config`."""

    kafka: KafkaConfig = KafkaConfig()
    events: EventsConfig = EventsConfig()
    domains: tuple[Name, ...] = ()
    """Known domains; another one in the stream is modelled, and reported under `other`."""
    kinds: dict[Name, KindConfig] = Field(default_factory=lambda: {"click": KindConfig()})
    """Conversion kinds = the model's tasks."""
    slots: dict[Name, SlotConfig] = Field(default_factory=dict)
    join: JoinConfig = JoinConfig()
    model: ModelConfig = ModelConfig()
    technique: TechniqueConfig = TechniqueConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    store: StoreConfig = StoreConfig()
    admission: AdmissionConfig = AdmissionConfig()
    expiry: ExpiryConfig = ExpiryConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    publish: PublishConfig = PublishConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _names_and_times_fit(self) -> Config:
        if not self.kinds:
            raise ValueError('at least one conversion kind is needed: [kinds.NAME] window = "24h"')
        clash = sorted(set(self.slots) & set(IMPLICIT_SLOTS))
        if clash:
            raise ValueError(f"slots {clash} are every impression's own fields; remove them")
        rowless = ("sequence", "vector")  # the one has item_id's rows, the other none
        tables = {*IMPLICIT_SLOTS, *(n for n, s in self.slots.items() if s.type not in rowless)}
        for section, named in (("admission", self.admission.slots), ("expiry", self.expiry.slots)):
            if unknown := sorted(set(named) - tables):
                raise ValueError(
                    f"{section}.slots: {unknown} have no rows of their own; "
                    f"expected among {sorted(tables)}"
                )
        types = dict.fromkeys(IMPLICIT_SLOTS, "categorical")
        types |= {name: slot.type for name, slot in self.slots.items()}
        models.check_model(self.model, tuple(self.kinds), types, self.domains)
        longest = max(k.window for k in self.kinds.values())
        if self.join.elapsed > longest:
            raise ValueError("join.elapsed must not exceed the longest window of kinds")
        return self

    @property
    def window_ms_max(self) -> int:
        """The longest attribution window: an impression's last window closes this long after it."""
        return max(k.window for k in self.kinds.values())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Conversion kinds in config order: the order of every `[B, T]` label and logit tensor."""
        return tuple(self.kinds)

    def topic(self, name: str) -> str:
        """Kafka's name of the topic `name` (see `topics.names`)."""
        is_event_topic = name in ("impressions", "conversions")
        prefix = (self.kafka.events_prefix if is_event_topic else "") or self.kafka.topic_prefix
        return f"{prefix}.{name}"
