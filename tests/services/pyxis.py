"""A stand-in for Slurm's plugin pyxis, for tests: called as `pyxis.py /usr/bin/srun OPTIONS...`.

Takes the plugin's options out of srun's and lets each task enter the image by the stand-in for
Apptainer, which has to be on PATH.
"""

import os
import sys

_WITH_VALUE = ("--container-image", "--container-mounts", "--container-env")


def main(srun: str, arguments: list[str]) -> None:
    """Become srun."""
    options, rest, found = [], list(arguments), {}
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        name, _, value = option.partition("=")
        if name.startswith("--container"):
            assert name in _WITH_VALUE, option
            found[name] = value
        else:
            options += [option, rest.pop(0)] if option == "--output" else [option]
    enter: list[str] = []
    if "--container-image" in found:
        for name in found["--container-env"].split(","):  # else the image's would win
            os.environ[f"APPTAINERENV_{name}"] = os.environ[name]
        binds = (f"--bind={mount}" for mount in found["--container-mounts"].split(","))
        enter = ["apptainer", "exec", *binds, found["--container-image"]]
    os.execv(srun, [srun, *options, *enter, *rest])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
