"""The simulated world's truth: tastes, items, domains, and how likely each conversion is.

Knows nothing of events or JSON; `runtime.sources.simulated` turns what happens here into traffic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FACTORS = 8
CATEGORIES = ("cars", "fashion", "food", "games", "health", "home", "music", "travel")
"""One per factor: an item's category is the factor it is strongest in."""
DEVICES = ("phone", "tablet", "desktop", "tv")
_DEVICE_SHARE = np.array([0.70, 0.08, 0.20, 0.02])
_DEVICE_LOGIT = np.array([0.1, 0.0, 0.2, -0.6])


@dataclass(frozen=True, slots=True)
class KindTruth:
    """How one kind behaves. Delays are log-normal: their median, and sigma of the log.

    `affinity` is the standard deviation that taste adds to the logit.
    """

    base_logit: float
    affinity: float
    delay_ms_median: float
    delay_sigma: float
    window_ms: int
    value_median: float | None = None

    @property
    def share_in_window(self) -> float:
        """Probability that a conversion that comes at all comes within the window."""
        z = math.log(self.window_ms / self.delay_ms_median) / self.delay_sigma
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))


KINDS: Mapping[str, KindTruth] = {
    "click": KindTruth(-3.2, 1.0, 1_200, 0.8, 8_000),
    "like": KindTruth(-4.4, 1.2, 2_500, 0.9, 14_000),
    "purchase": KindTruth(-5.0, 1.4, 5_000, 0.8, 20_000, value_median=25.0),
}
DOMAINS: Mapping[str, tuple[float, float]] = {
    "feed": (0.800, 0.0),
    "search": (0.160, 0.6),
    "video": (0.037, -0.4),
    "marketplace": (0.003, 1.0),
}
"""Domain -> (share of the traffic, shift of every kind's logit)."""
DRIFT_MS = 1_800_000.0
"""Time in which a user's interests change altogether."""
AGREEMENT = 0.9
"""How much of a user's, and of an item's, factors all kinds share."""


@dataclass(frozen=True, slots=True)
class Shown:
    """N impressions: who saw what, where, and what truly follows. K kinds in `KINDS` order."""

    times_ms: Ints  # [N]
    users: Ints  # [N]
    items: Ints  # [N]
    domains: Ints  # [N] into DOMAINS
    devices: Ints  # [N] into DEVICES
    probabilities: Floats  # [N, K] of a conversion within the kind's window
    delays_ms: Ints  # [N, K]; -1 = no conversion
    values: Floats  # [N, K]; nan = the kind has none


class World:
    """`items` are there at `start_ms`; as many again arrive, one every `arrival_ms`."""

    def __init__(
        self,
        random: np.random.Generator,
        users: int,
        items: int,
        start_ms: int,
        arrival_ms: int,
        *,
        agreement: float = AGREEMENT,
        logit_shift: float = 0.0,
        drift_ms: float = DRIFT_MS,
        drift_until_ms: float = math.inf,
    ) -> None:
        """`logit_shift` makes every conversion likelier or rarer. After `drift_until_ms` interests
        stay; users, items and times are drawn as if they went on changing."""
        self._drift_ms, self._drift_until_ms = drift_ms, drift_until_ms
        self._random = random
        self._logit_shift = logit_shift
        kinds = len(KINDS)
        shared = random.standard_normal((users, 1, FACTORS))
        own = random.standard_normal((users, kinds, FACTORS))
        self._user_factors = agreement * shared + math.sqrt(1 - agreement**2) * own  # [U, K, F]
        item_count = 2 * items
        shared = random.standard_normal((item_count, 1, FACTORS))
        own = random.standard_normal((item_count, kinds, FACTORS))
        self._item_factors = agreement * shared + math.sqrt(1 - agreement**2) * own  # [I, K, F]
        noise = 0.3 * random.standard_normal((item_count, FACTORS))
        self.item_vectors = np.round(shared[:, 0, :] + noise, 4)  # [I, F]
        self.item_categories = shared[:, 0, :].argmax(axis=1)  # [I]
        self.item_advertisers = random.integers(0, max(2, items // 10), item_count)
        self.item_prices = np.round(np.exp(random.normal(3.0, 0.7, item_count)), 2)
        self.user_activity = 1 / np.arange(1, users + 1) ** 0.6
        self._user_share = self.user_activity / self.user_activity.sum()
        advertiser_quality = random.normal(0, 0.8, int(self.item_advertisers.max()) + 1)
        self._item_quality = advertiser_quality[self.item_advertisers] + random.normal(
            0, 0.5, item_count
        )
        self._user_propensity = random.normal(0, 0.5, users)
        self._popularity = random.permutation(1 / np.arange(1, item_count + 1) ** 0.7)
        late = start_ms + arrival_ms * np.arange(1, items + 1)
        self._arrivals_ms = np.concatenate([np.zeros(items, np.int64), late])
        self._drifted_ms = float(start_ms)

    def interests(self, user: int) -> list[str]:
        """The user's three strongest categories now, strongest first."""
        mean = self._user_factors[user].mean(axis=0)
        return [CATEGORIES[i] for i in np.argsort(-mean, kind="stable")[:3]]

    def show(self, times_ms: Ints) -> Shown:
        """Draw the impressions at `times_ms` (ascending) and what follows each of them."""
        random, count = self._random, len(times_ms)
        self._drift(float(times_ms[-1]))
        users = random.choice(len(self._user_share), count, p=self._user_share)
        open_items = self._popularity * (self._arrivals_ms <= times_ms[0])
        items = random.choice(len(open_items), count, p=open_items / open_items.sum())
        shares = np.array([share for share, _ in DOMAINS.values()])
        domains = random.choice(len(shares), count, p=shares / shares.sum())
        devices = random.choice(len(DEVICES), count, p=_DEVICE_SHARE)
        ever = self._probability_ever(users, items, domains, devices)
        converts = random.random(ever.shape) < ever
        delays = np.empty(ever.shape, np.int64)
        values = np.full(ever.shape, np.nan)
        for k, kind in enumerate(KINDS.values()):
            draw = random.lognormal(math.log(kind.delay_ms_median), kind.delay_sigma, count)
            delays[:, k] = np.maximum(1, draw)
            if kind.value_median is not None:
                values[:, k] = np.round(
                    random.lognormal(math.log(kind.value_median), 0.6, count), 2
                )
        delays[~converts] = -1
        in_window = np.array([kind.share_in_window for kind in KINDS.values()])
        return Shown(times_ms, users, items, domains, devices, ever * in_window, delays, values)

    def _probability_ever(self, users: Ints, items: Ints, domains: Ints, devices: Ints) -> Floats:
        shifts = np.array([shift for _, shift in DOMAINS.values()])
        taste = np.einsum("nkf,nkf->nk", self._user_factors[users], self._item_factors[items])
        logits = np.array([kind.base_logit for kind in KINDS.values()]) + (
            np.array([kind.affinity for kind in KINDS.values()]) * taste / math.sqrt(FACTORS)
        )
        logits += (shifts[domains] + _DEVICE_LOGIT[devices] + self._logit_shift)[:, None]
        logits += (self._item_quality[items] + self._user_propensity[users])[:, None]
        logits -= 0.2 * (np.log(self.item_prices[items]) - 3.0)[:, None]
        return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]

    def _drift(self, now_ms: float) -> None:
        now_ms = max(self._drifted_ms, min(now_ms, self._drift_until_ms))
        share = min(1.0, (now_ms - self._drifted_ms) / self._drift_ms)
        self._drifted_ms = now_ms
        fresh = self._random.standard_normal(self._user_factors.shape)
        self._user_factors *= math.sqrt(1 - share)
        self._user_factors += math.sqrt(share) * fresh
