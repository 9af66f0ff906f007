"""Section `cost` of cluster.yaml: what an hour and a kilowatt-hour stand for. Measures nothing."""

import re
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from pipeline.config.files import STRICT

Factor = Annotated[float, Field(ge=0)] | None


class CostFactors(BaseModel):
    """Factors by which hours and energy become a price and CO2; without one: not known."""

    model_config = STRICT

    currency: str = "EUR"
    per_gpu_hour: Factor = None
    """Price of a GPU for an hour."""
    per_cpu_hour: Factor = None
    """Price of a processor for an hour."""
    grams_co2_per_kwh: Factor = None
    """Of the electricity where the machines are; the grid's operator publishes it."""
    watts_per_gpu: Factor = None
    """Taken where the power of a run's GPUs was not measured."""
    watts_per_cpu: Factor = None
    """Of a processor that a run was given; nobody measures that. Absent: energy is that of GPUs."""

    @field_validator("currency")
    @classmethod
    def _check_currency(cls, value: str) -> str:
        if not re.fullmatch(r"\S{1,8}", value):
            raise ValueError(f"got {value!r}, expected a short name such as EUR")
        return value
