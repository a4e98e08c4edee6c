"""Release metadata, links of the README, and a typed script of a user."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import cifarnet
import typed_user

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == cifarnet.__version__


def test_a_release_that_is_not_ready_is_refused(tmp_path: Path) -> None:
    mistakes = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))["mistakes"]
    (tmp_path / "src" / "cifarnet").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "src" / "cifarnet" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2030-01-01\n")
    assert mistakes("v1.2.3", tmp_path) == []
    assert mistakes("1.2.3", tmp_path) == ["pyproject.toml has version 1.2.3, the tag is 1.2.3"]
    assert len(mistakes("v1.2.4", tmp_path)) == 2
    (tmp_path / "src" / "cifarnet" / "__init__.py").write_text('__version__ = "1.2.2"\n')
    assert mistakes("v1.2.3", tmp_path) == ["src/cifarnet/__init__.py has another version than pyproject.toml"]


def test_links_of_the_readme_work_on_a_package_page() -> None:
    absolute = runpy.run_path(str(ROOT / ".ci" / "absolute_links.py"))["absolute"]
    text = "![curves](docs/a.png) [docs](docs/b.md) [torch](https://pytorch.org) [here](#train-it)"
    assert absolute(text, "https://host/o/n", "v1") == (
        "![curves](https://host/o/n/raw/v1/docs/a.png) [docs](https://host/o/n/blob/v1/docs/b.md) "
        "[torch](https://pytorch.org) [here](#train-it)"
    )
    readme = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", readme):
        assert (ROOT / path).exists(), f"README.md links to {path}, which is not there"
    assert not re.search(r"\]\((?![a-z]+:|#)", absolute(readme, "https://host/o/n", "v1"))


def test_every_promised_python_is_tested() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    (matrix,) = re.findall(r"python-version: \[(.*)\]", workflow)
    assert re.findall(r'"(.*?)"', matrix) == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_a_typed_script_of_a_user_runs(tmp_path: Path) -> None:
    evaluation = typed_user.use(typed_user.train(tmp_path))
    assert evaluation.num_images == 20
