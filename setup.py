"""What pyproject.toml cannot say: the recipes of configs/ go into the wheel as sdjax/recipes, and the
package page has the README without links to files that it does not hold.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Builds the package; an editable installation reads configs/ where it is."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "sdjax" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for path in sorted((ROOT / "configs").glob("*.py")):
                shutil.copy(path, target)


def package_page():
    """The README; relative links are their text, relative pictures are left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    cmdclass={"build_py": BuildWithRecipes},
    long_description=package_page(),
    long_description_content_type="text/markdown",
)
