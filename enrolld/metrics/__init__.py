"""Metrics: counted by each worker, summed by the supervisor, shown at `/metrics` by whichever worker is asked.

A new metric is one row of `catalogue`. What the workers count is then a call of `Counts` (`add` or `observe`) where it
happens; what each of them has is a `set`, best by one of `Link.readers`. That is all: messages, sums, the answer and
its zeros follow from the row. What one worker can say for all (it stands in the store, or on a board that all share)
is a row of `_said` and a line in `gauges`. The README's table wants the row as well: a test prints it.

Only `exposition` imports prometheus_client, and only a worker imports `exposition`.
"""
