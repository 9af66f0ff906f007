"""In which container a stage runs: setting `container` of a job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from pipeline.config.files import STRICT

PYXIS = "pyxis"
_PYXIS_OPTIONS = ("--container-", "--no-container-")
_PYXIS_OWN = ("--container-image", "--container-mounts", "--container-env")


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image, and how a job's processes get into it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    image: str
    """The whole path of a .sif file, of a folder or of a .sqsh file (pyxis), or what the runtime
    fetches: docker://registry/name@sha256:..."""
    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """The program on the nodes' PATH; pyxis: the scheduler itself enters, where it has that
    plugin."""
    python: str = "python3"
    """The interpreter in the image."""
    binds: tuple[str, ...] = ()
    """What processes see besides the project, its data and DVC's cache: /data, or
    /scratch:/mnt[:ro]."""
    options: tuple[str, ...] = ()
    """Other options of the runtime's exec, or of the plugin: those begin with --container."""

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            ValueError: Names the setting, the value and what is expected.
        """
        if not self.image:
            raise ValueError("got an empty image, expected the path of a .sif file")
        if self.runtime != PYXIS and not (self.is_fetched or self.image.startswith("/")):
            raise ValueError(
                f"got image {self.image!r}, expected a path from / on, or docker://..."
            )
        for bind in self.binds:
            if not bind.startswith("/") or "," in bind:
                raise ValueError(f"got {bind!r} in binds, expected /path or /path:/path-inside")
        for option in self.options:
            self._check_option(option)

    def _check_option(self, option: str) -> None:
        name = option.partition("=")[0]
        if self.runtime == PYXIS:
            if name in _PYXIS_OWN:
                raise ValueError(f"got {name} in options: remove it, image or binds say it")
            if not name.startswith(_PYXIS_OPTIONS):
                raise ValueError(f"got {name} in options, expected --container-...")
        elif name.startswith(_PYXIS_OPTIONS):
            raise ValueError(
                f"got {name} in options: {self.runtime} has none such; set runtime: pyxis"
            )

    @property
    def is_fetched(self) -> bool:
        """Whether the runtime gets the image from a registry."""
        return "://" in self.image

    @property
    def is_local(self) -> bool:
        """Whether the image is a file or folder of this filesystem."""
        return self.image.startswith("/")


def written_short(value: Any) -> Any:
    """Return what a person has written as a mapping: `/path/asl.sif` is an image."""
    if isinstance(value, str):
        return {"image": value}
    if isinstance(value, Mapping):
        return {name: _as_tuple(part) if name in ("binds", "options") else part
                for name, part in value.items()}  # fmt: skip
    return value


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value
