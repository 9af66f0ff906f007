"""Environment variables by which a scheduler tells a job's processes who and where they are."""

JOB_ID, JOB_NODES, JOB_RESTARTS = "ASL_JOB_ID", "ASL_JOB_NODES", "ASL_JOB_RESTARTS"
JOB_CPUS, NODE = "ASL_JOB_CPUS", "ASL_NODE"
"""Environment variables of every process of a job: its id as `submit` returned it, its nodes for
people, how often it was put back into the queue; how many processors this process may use, and what
the scheduler calls the machine that it is on.

Besides these: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torch's env:// has
them. All but `JOB_ID` may be missing where there is one process on one machine."""
