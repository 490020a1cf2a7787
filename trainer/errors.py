"""Why the trainer stops. One class per thing that an operator does differently.

TrainerError
├── SourceGap       the log no longer holds what the store has not seen
├── SourceLost      the broker stayed unreachable for longer than is worth waiting
├── FeedDied        the process that reads samples ahead is gone
└── StateMismatch   the store was written for another model, other slots or other kinds
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base. The process ends with `str()` as its reason; the store keeps the last commit."""


class SourceGap(TrainerError):
    """Samples between the stored offset and the log's earliest (or a newer log) are gone.

    Operator action: restore the topic, or accept the loss with --accept-gap, or use a new store.
    """


class SourceLost(TrainerError):
    """The broker did not answer for minutes.

    Operator action: bring the broker back and start the trainer; it resumes at the stored offsets.
    """


class FeedDied(TrainerError):
    """The process that reads, decodes and hashes samples ended without being asked to.

    Operator action: start the trainer again; it resumes at the stored offsets. Where it was killed
    for memory, lower trainer.batch_samples_max.
    """


class StateMismatch(TrainerError):
    """The store's dense weights do not fit this config.

    Operator action: go back to the config named in the message, or use a new store directory.
    """
