"""The list of emoji, their names and groups, as the Unicode Consortium publishes it."""
import dataclasses
import difflib
import pathlib
import re
from collections.abc import Callable

from sdjax.errors import SdjaxError
from sdjax.text_files import read_text

_PLACES = (
    "/usr/share/unicode/emoji/emoji-test.txt",
    "/usr/share/unicode-data/emoji/emoji-test.txt",
    "/usr/local/share/unicode/emoji/emoji-test.txt",
)
_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[0-9.]+ (.+)")

GROUPS = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places",
    "Activities", "Objects", "Symbols", "Flags",
)
CORE = (
    "Smileys & Emotion", "Animals & Nature", "Food & Drink", "clothing", "musical-instrument",
)
"""The subset "core": 509 smileys, hearts, animals, plants, foods and objects in Unicode 15."""


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, Unicode CLDR name, group and subgroup."""

    characters: str
    name: str
    group: str
    subgroup: str

    @property
    def codepoints(self) -> str:
        """In hexadecimal of at least four digits, e.g. "1f468-200d-1f33e"."""
        return "-".join(f"{ord(c):04x}" for c in self.characters)


def find_emoji_test() -> str:
    """The path of an installed emoji-test.txt; SdjaxError where there is none."""
    for place in _PLACES:
        if pathlib.Path(place).is_file():
            return place
    raise SdjaxError(
        "found no emoji-test.txt (the names of the emoji); install it with "
        "'apt install unicode-data', or give the path of a copy from unicode.org/Public/emoji"
    )


def read_emoji_test(path) -> list[Emoji]:
    """The fully qualified emoji of an emoji-test.txt, in its order, without skin and hair parts."""
    emoji, group, subgroup = [], "", ""
    try:
        text = read_text(path)
    except SdjaxError as error:
        raise SdjaxError(f"cannot read the emoji names: {error}") from error
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").strip()
        elif match := _LINE.match(line):
            characters = "".join(chr(int(code, 16)) for code in match[1].split())
            emoji.append(Emoji(characters, match[2].strip(), group, subgroup))
    if not emoji:
        raise SdjaxError(f"{path} lists no emoji; expected the emoji-test.txt of Unicode")
    return emoji


def emoji_subset(subset: str = "all") -> Callable[[dict], bool]:
    """A test of whether an emoji, {"group": …, "subgroup": …, …}, belongs to a subset.

    subset: "all"; "core" (see CORE); or names of groups and subgroups of Unicode, separated by
        commas, e.g. "Food & Drink, heart, animal-mammal".
    """
    if subset == "all":
        return lambda emoji: True
    names = CORE if subset == "core" else tuple(n.strip() for n in subset.split(",") if n.strip())
    if not names:
        raise SdjaxError("the emoji subset is empty; expected 'all', 'core', or names of groups")
    return lambda emoji: emoji["group"] in names or emoji["subgroup"] in names


def check_subset(subset: str, groups: set[str]) -> None:
    """SdjaxError, with the nearest name, where a subset asks for a group that is not there."""
    if subset in ("all", "core"):
        return
    for name in (n.strip() for n in subset.split(",") if n.strip()):
        if name not in groups:
            near = difflib.get_close_matches(name, groups, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"groups: {', '.join(GROUPS)}"
            raise SdjaxError(f"no group or subgroup of emoji is called {name!r}; {hint}")
