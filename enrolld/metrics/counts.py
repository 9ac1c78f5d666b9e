"""Numbers by metric and labels, as one process counts them, and how the numbers of several become one."""

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from enrolld.metrics.catalogue import METRICS, OTHER, Label, Merge, Metric, Type

__all__ = ["Counts", "Key", "Numbers", "Series", "left_by", "merged", "vetted"]

_NOWHERE = "\0"

Key = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""
Numbers = tuple[float, ...]
"""As many as the metric's `width`: a histogram's are its sum, and how many fell into each bucket and beyond."""


class Series(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one series has come to since its process began: saying it twice changes nothing."""

    metric: str
    labels: tuple[str, ...]
    numbers: Numbers

    @property
    def key(self) -> Key:
        """What it is of."""
        return self.metric, self.labels


class Counts:
    """Counts for one process, from any of its threads. It never raises for what it is told: a wrong word is `other`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[Key, list[float]] = {}
        self._changed: set[Key] = set()

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        """Count up a counter, or a gauge that all workers' numbers are added up in."""
        with self._lock:
            self._series(metric, labels)[0] += amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Say what a gauge is now."""
        with self._lock:
            self._series(metric, labels)[0] = float(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Put a value into a histogram."""
        with self._lock:
            numbers = self._series(metric, labels)
            numbers[0] += value
            numbers[1 + bisect_left(metric.buckets, value)] += 1

    def changed(self) -> list[Series]:
        """What has changed since this was last asked."""
        with self._lock:
            keys, self._changed = self._changed, set()
            return [Series(*key, tuple(self._numbers[key])) for key in keys]

    def all(self) -> dict[Key, Numbers]:
        """Everything."""
        with self._lock:
            return {key: tuple(numbers) for key, numbers in self._numbers.items()}

    def _series(self, metric: Metric, labels: tuple[str, ...]) -> list[float]:
        key = (metric.name, labels)
        found = self._numbers.get(key)
        if found is None:
            # Only what may stand there is kept, so that the number of series stays bounded.
            values = tuple(map(_value, metric.labels, labels))
            if _NOWHERE in values or len(labels) != len(metric.labels):
                return [0.0] * metric.width
            key = (metric.name, values)
            found = self._numbers.setdefault(key, [0.0] * metric.width)
        self._changed.add(key)
        return found


def _value(label: Label, value: str) -> str:
    """The value, or what the label has for those that it does not know, or `_NOWHERE`."""
    return next((word for word in (value, OTHER, "unknown") if label.takes(word)), _NOWHERE)


def vetted(series: Iterable[Series]) -> dict[Key, Numbers]:
    """The series by key. Raises ValueError for any that no worker can have counted: whoever sent it is not to be
    believed.
    """
    found: dict[Key, Numbers] = {}
    for each in series:
        metric = METRICS.get(each.metric)
        if metric is None or metric.merge is Merge.NONE:
            raise ValueError("no worker counts this metric")
        if len(each.labels) != len(metric.labels) or len(each.numbers) != metric.width:
            raise ValueError(f"{metric.name} has another shape")
        if not all(label.takes(value) for label, value in zip(metric.labels, each.labels, strict=True)):
            raise ValueError(f"{metric.name} has no such labels")
        if not all(math.isfinite(number) and number >= 0 for number in each.numbers):
            raise ValueError(f"{metric.name} has numbers that nobody counts")
        found[each.key] = each.numbers
    return found


def merged(living: Iterable[dict[Key, Numbers]], gone: dict[Key, Numbers]) -> dict[Key, Numbers]:
    """One number of all. `gone` is what processes that ended have left: see `left_by`."""
    total = dict(gone)
    for numbers in living:
        for key, values in numbers.items():
            known = total.get(key)
            total[key] = values if known is None else _merge(METRICS[key[0]], known, values)
    return total


def left_by(numbers: dict[Key, Numbers]) -> dict[Key, Numbers]:
    """What is still true when the process has ended: what it counted, not what it held."""
    return {key: values for key, values in numbers.items() if _outlasts(METRICS[key[0]])}


def _outlasts(metric: Metric) -> bool:
    return metric.type is not Type.GAUGE or metric.merge is Merge.LARGEST


def _merge(metric: Metric, one: Numbers, other: Numbers) -> Numbers:
    if metric.merge is Merge.LARGEST:
        return max(one, other)
    return tuple(map(float.__add__, one, other))
