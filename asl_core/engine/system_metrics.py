"""Samples of the machine while a stage runs, written to its journal.

Names and units are those of MLflow's system metrics with the node in between
(`system/<node>/cpu_utilization_percentage`), so that MLflow's page for them shows the curves.
The step of a sample is the number of seconds since the first attempt began: it goes on after a
resume and two samples of a run never share one.
"""

import logging
import os
import socket
import threading
import time
from typing import Any, Self

import psutil

from asl_core.engine.records import SYSTEM_PREFIX, Journal

MEGABYTE = 1e6  # bytes; MLflow counts in powers of ten

_log = logging.getLogger(__name__)


class SystemMetrics:
    """Context manager that samples the machine in a background thread.

    A sample costs about a millisecond of one core; one more is taken at the end, so that short
    stages have at least one.

    Args:
        journal: Where samples go; must stay open while the context lasts.
        interval: Seconds between two samples.
        node: Name of this machine; the host's short name by default.
    """

    def __init__(self, journal: Journal, *, interval: float = 5.0, node: str | None = None):
        self._journal = journal
        self._interval = interval
        self._prefix = f"{SYSTEM_PREFIX}{node or socket.gethostname().split('.')[0]}/"
        self._process = psutil.Process()
        self._peak_bytes = 0
        self._last_step = -1
        self._gpus = _Gpus()
        self._last: tuple[float, dict[str, float]] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._last = (time.monotonic(), _counters())
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self._gpus.close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        """Take one sample; a machine that cannot be asked, or a full disk, stops no training."""
        try:
            self._record()
        except (OSError, psutil.Error) as error:
            _log.warning("no system metrics: %s", error)

    def _record(self) -> None:
        values = {**self._machine(), **self._rates(), **self._own(), **self._gpus.sample()}
        # a second sample of one second would void the first, which may be in a store already
        step = max(int(time.time() - self._journal.began_ms / 1000), self._last_step + 1)
        self._last_step = step
        self._journal.metrics(step, {self._prefix + name: v for name, v in values.items()})

    def _machine(self) -> dict[str, float]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.getcwd())
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / MEGABYTE,
        }

    def _rates(self) -> dict[str, float]:
        """Return megabytes per second since the last sample."""
        now, counters = time.monotonic(), _counters()
        before, old = self._last or (now, counters)
        self._last = (now, counters)
        seconds = max(now - before, 1e-3)
        return {
            f"{name}_megabytes_per_second": (counters[name] - old.get(name, 0.0))
            / MEGABYTE
            / seconds
            for name in counters
        }

    def _own(self) -> dict[str, float]:
        """Return the memory of this process and its children (loader workers)."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # a worker that has just ended
        self._peak_bytes = max(self._peak_bytes, total)
        return {
            "process_resident_megabytes": total / MEGABYTE,
            "process_peak_resident_megabytes": self._peak_bytes / MEGABYTE,
        }


class _Gpus:
    """The machine's NVIDIA GPUs; none where the driver or its library is missing."""

    def __init__(self) -> None:
        self._handles: list[object] = []
        try:
            import pynvml  # optional: machines without NVIDIA GPUs go without it
        except ImportError:
            _log.debug("nvidia-ml-py is not installed; no GPU metrics")
            return
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            handles: list[object] = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except pynvml.NVMLError as error:
            _log.debug("no GPU metrics: %s", error)
            return
        self._nvml: Any = pynvml
        self._handles = handles

    def sample(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            values |= self._sample_one(f"gpu_{index}_", handle)
        return values

    def _sample_one(self, prefix: str, handle: object) -> dict[str, float]:
        nvml = self._nvml
        readers = {
            "memory_usage_megabytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / MEGABYTE,
            "memory_usage_percentage": lambda: _share(nvml.nvmlDeviceGetMemoryInfo(handle)),
            "utilization_percentage": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "power_usage_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
        values = {}
        for name, read in readers.items():
            try:
                values[prefix + name] = float(read())
            except nvml.NVMLError:
                continue  # GPU partitions (MIG) do not report utilisation or power
        return values

    def close(self) -> None:
        if self._handles:
            self._nvml.nvmlShutdown()
            self._handles = []


def _share(memory: Any) -> float:
    return 100.0 * memory.used / memory.total


def _counters() -> dict[str, float]:
    """Return bytes moved since the machine started."""
    values: dict[str, float] = {}
    network = psutil.net_io_counters()
    if network is not None:  # pyright: ignore[reportUnnecessaryComparison]  # without interfaces
        values |= {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}
    if (disk := psutil.disk_io_counters()) is not None:
        values |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    return values
