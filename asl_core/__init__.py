"""The science: methods, losses, data, evaluations. For use from Python: `asl_core.api`."""
