"""What a private run promises, and what it releases to keep within it: noise and rates from settings and counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flexmix.packing.units import UnitWindows
from flexo.errors import InputError
from merge.formats.expert_header import Released, StatedPrivacy
from trainers.data import DataOptions
from trainers.privacy.accounting import Release, accountant_said, spent, with_noise_for
from trainers.privacy.randomness import Secret

DOCUMENT = "document"
COUNTS, MOMENTS, GRADIENTS = "counts", "moments", "gradients"
COUNTS_NOISE = 30.0  # over the sensitivity: counts of thousands come out right to two digits, at next to no epsilon
HIGHEST_RATE = 0.5
LEAST_UNITS = 500  # with fewer, the noise on their number would leave nothing of it, and of what they teach neither
NOT_COVERED = "settings chosen by looking at results; anything sent besides this file, such as proxies or embeddings"


@dataclass(frozen=True)
class PrivacyOptions:
    """Settings of training with differential privacy."""

    epsilon: float
    delta: float | None = None  # None: n^-1.1 of the noised number of units n
    unit: str = DOCUMENT  # or the column that names it
    windows: int = 4  # of a unit that a step reads, at most
    clip: float | None = None  # of a unit's gradient; None: every unit counts the same (automatic clipping)
    moments_share: float = 0.1  # of epsilon, for what the router rows start from
    public_start: bool = False  # the owner's word that model.start was trained on public text alone
    budget: float | None = None  # the epsilon that all runs on this text may cost together; None: any
    ledger: Path | None = None  # of what they have cost; None: beside the text

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf") or (self.delta is not None and not 0 < self.delta < 1):
            raise InputError(
                f"privacy: epsilon {self.epsilon} and delta {self.delta}, expected an epsilon above 0, and a delta "
                "between 0 and 1, far below one over the number of units; null: n^-1.1."
            )
        if self.windows < 1 or not 0 < self.moments_share < 1 or (self.clip is not None and not self.clip > 0):
            raise InputError(
                f"privacy: windows {self.windows}, moments_share {self.moments_share}, clip {self.clip}. Expected at "
                "least one window, a share between 0 and 1, and a clip above 0 or null."
            )


@dataclass(frozen=True)
class Counts:
    """How much there is: units, and windows of which a unit has at most so many."""

    units: int
    windows: int

    @classmethod
    def of(cls, windows: UnitWindows, at_most: int) -> Counts:
        return cls(windows.units, int(windows.windows_U.clip(max=at_most).sum()))

    def noised(self, secret: Secret, at_most: int) -> Counts:
        """With noise of `COUNTS_NOISE`: a unit adds at most 1 to the first, `at_most` to the second."""
        first, second = secret.normals("counts", 0, 2) * COUNTS_NOISE * 2**0.5
        units = max(1, round(self.units + first))
        return Counts(units, max(units, round(self.windows + second * at_most)))


@dataclass(frozen=True)
class Guarantee:
    """What a run releases, and the epsilon and delta of all of it."""

    options: PrivacyOptions
    counts: Counts  # noised; nothing here depends on the text but through them
    delta: float
    rate: float  # q of a step
    units_per_step: float  # expected
    releases: tuple[Release, ...]
    epsilon: float

    @property
    def noise(self) -> float:
        """The noise multiplier of a step."""
        return next(one.noise for one in self.releases if one.name == GRADIENTS)

    @property
    def moments(self) -> Release | None:
        return next((one for one in self.releases if one.name == MOMENTS), None)

    def stated(self, steps: int) -> StatedPrivacy:
        """As the expert file says it."""
        return StatedPrivacy(
            mechanism="DP-SGD, Poisson-sampled units, Gaussian noise",
            epsilon=self.epsilon,
            delta=self.delta,
            unit=self.options.unit,
            noise_multiplier=self.noise,
            clip="automatic" if self.options.clip is None else f"{self.options.clip:g}",
            sampling_rate=self.rate,
            steps=steps,
            accountant=accountant_said(),
            released={
                one.name: Released(spent([one], self.delta), one.noise, one.rate, one.times) for one in self.releases
            },
            not_covered=NOT_COVERED,
        )

    def table(self) -> list[str]:
        """Each thing that is released with its own epsilon, for people."""
        alone = [f"{one.name}: {spent([one], self.delta):.3g} (noise {one.noise:.3g})" for one in self.releases]
        return [
            f"epsilon {self.epsilon:.3g} at delta {self.delta:.2g}, for one {self.options.unit} more or less",
            f"each alone: {', '.join(alone)}",
        ]


def guarantee(options: PrivacyOptions, counts: Counts, data: DataOptions, reads_text: bool) -> Guarantee:
    """The noise with which a run keeps within `options.epsilon`.

    Args:
        options: what is promised.
        counts: of the owner's text, noised for a run; exact ones are for a plan, which stays with the owner.
        data: steps, and windows of a step.
        reads_text: whether router rows start from moments of own text.

    Raises:
        InputError: there are too few units, or no noise reaches epsilon.
    """
    rate, delta = check_sizes(options, counts, data)
    releases = [Release(COUNTS, COUNTS_NOISE)]
    if reads_text:
        share = min(1.0, data.moment_windows / counts.windows)
        releases.append(with_noise_for(Release(MOMENTS, 1.0, share), options.moments_share * options.epsilon, delta))
    gradients = Release(GRADIENTS, 1.0, rate, data.steps)
    releases.append(with_noise_for(gradients, options.epsilon, delta, releases))
    units = rate * counts.units
    return Guarantee(options, counts, delta, rate, units, tuple(releases), spent(releases, delta))


def check_sizes(options: PrivacyOptions, counts: Counts, data: DataOptions) -> tuple[float, float]:
    """The sampling rate of a step, and delta; raises `InputError` if there are too few units for them."""
    own = data.batch_size * (1 - data.public_share)
    rate, delta = own / counts.windows, counts.units**-1.1 if options.delta is None else options.delta
    if rate > HIGHEST_RATE:
        raise InputError(
            f"privacy: {counts.units:,} units with {counts.windows:,} windows of {data.length} tokens in all, and a "
            f"step would read {own:.0f} of them (data.batch_size={data.batch_size}). What is drawn at random must be "
            f"a small part: choose data.batch_size={max(1, counts.windows // 10)} or less, or bring more text."
        )
    if delta * counts.units > 1:
        raise InputError(
            f"privacy.delta={delta:g}: {counts.units:,} units. One over their number would allow to publish one of "
            "them whole; choose a delta far below it, or null."
        )
    return rate, delta
