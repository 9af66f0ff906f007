"""What pyproject.toml cannot say: the suites lie beside the packages, and go into a wheel too.

`pipeline/suites/<name>/params.yaml`, or `suite.yaml` where that one is generated from it; the demo,
which is the root, as `pipeline/suites/demo`.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithSuites(build_py):
    """Copies the files of the suites that people write; what is generated is left out."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the suites are found where they are
            return
        for suite in (ROOT, *sorted((ROOT / "suites").iterdir())):
            written = [suite / name for name in ("suite.yaml", "params.yaml")]
            file = next((path for path in written if path.is_file()), None)
            if file is not None:
                name = "demo" if suite == ROOT else suite.name
                target = Path(self.build_lib, "pipeline", "suites", name)
                self.mkpath(str(target))
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": BuildWithSuites})
