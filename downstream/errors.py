"""What a consumer of representations meets, by what its operator does.

    ReaderError
    |-- ReaderFailed     the reader stopped for good; its cause is chained
    `-- ReaderTimeout    what was waited for did not come in time
Errors of Kafka and of the wire format are those of `topics.errors`.
"""

from __future__ import annotations


class ReaderError(Exception):
    """Base of this package's errors."""


class ReaderFailed(ReaderError):
    """The reader's thread ended. Operator action: see the chained cause (often a wire version newer
    than this release: upgrade); then build a new reader. What it held is not served any more,
    because nothing would say how old it is."""


class ReaderTimeout(ReaderError, TimeoutError):
    """Not there in time. Operator action: check that the trainer publishes (`headwater status`)."""
