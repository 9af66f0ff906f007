"""Tags by which an attempt says in its journal what it was given and what it has used."""

CPUS, GPUS, INDICES = "allotted.cpus", "allotted.gpus", "allotted.gpu_indices"
"""Processors of all processes, GPUs of the first one's machine, NVML's numbers of these."""
PROCESSES = "allotted.processes"
CPU_SECONDS, GPU_JOULES = "used.cpu_seconds", "used.gpu_joules"
"""Of the first process and its children, and of the GPUs that it sees; there once it has ended."""
