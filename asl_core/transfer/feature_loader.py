"""Micro-batches of features that are there already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from asl_core.data.sampler import StepPlan
from asl_core.transfer.features import FeatureBatch


@dataclass(frozen=True)
class FeatureLoader:
    """Micro-batches of features, float32, in the order of a `TrainingLoader`.

    Attributes:
        rows: Features of the whole training split, row i that of sample i.
        plan: Which samples when.
        columns: Which of a sample's features; absent: all.
    """

    rows: FeatureBatch
    plan: StepPlan
    columns: Sequence[int] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.plan.total_steps

    def iterate(self, start_step: int) -> Iterator[list[FeatureBatch]]:
        micro_batches = self.plan.micro_batches(start_step)
        for _ in range(start_step, self.total_steps):
            draws = islice(micro_batches, self.plan.micro_batches_per_step)
            yield [self._rows_of([index for _, index in part]) for part in draws]

    def _rows_of(self, indices: list[int]) -> FeatureBatch:
        # one read for the batch: sample by sample takes longer than the probe's whole step
        features = self.rows.features[indices]
        if self.columns is not None:
            features = features[:, [*self.columns]]
        return FeatureBatch(features.float(), self.rows.labels[indices], self.rows.indices[indices])
