"""The tensorflow-datasets builder `emoji`: pictures drawn from an installed font, named by Unicode.

Importing this module registers it, so that `tfds.load("emoji")` and `tfds.builder("emoji")` work.
"""
import dataclasses
import io
import logging

from sdjax.data.emoji_font import EmojiFont, find_font
from sdjax.data.emoji_list import check_subset, emoji_subset, find_emoji_test, read_emoji_test
from sdjax.data.tfds_import import tfds
from sdjax.data.tfds_source import TfdsSource, prepare
from sdjax.errors import SdjaxError

SIZE = 128

_log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class EmojiConfig(tfds.core.BuilderConfig):
    """Which font to draw from, and which list of emoji to draw; by default the installed ones."""

    font: str | None = None
    names: str | None = None


class Emoji(tfds.core.GeneratorBasedBuilder):
    """All fully qualified emoji that the font has, in Unicode's order, as 128x128 on white."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [EmojiConfig(name="noto", description="Noto Color Emoji, as installed")]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji drawn from a font, with their Unicode CLDR names as captions.",
            homepage="https://unicode.org/emoji/",
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                "caption": tfds.features.Text(doc="the Unicode CLDR short name"),
                "group": tfds.features.Text(),
                "subgroup": tfds.features.Text(),
                "codepoints": tfds.features.Text(doc="hexadecimal, joined by hyphens"),
            }),
            disable_shuffling=True,
        )

    def drawn_from(self):
        """The EmojiFont and the list of emoji; SdjaxError that names all that is not installed."""
        found, missing = [], []
        for given, find in ((self.builder_config.font, find_font),
                            (self.builder_config.names, find_emoji_test)):
            try:
                found.append(given or find())
            except SdjaxError as error:
                missing.append(str(error))
        if missing:
            raise SdjaxError("; and ".join(missing))
        return EmojiFont(found[0]), read_emoji_test(found[1])

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(*self.drawn_from())}

    def _generate_examples(self, font, names):
        lacking = []
        for index, emoji in enumerate(names):
            picture = font.draw(emoji.characters, SIZE)
            if picture is None:
                lacking.append(emoji.name)
                continue
            file = io.BytesIO()
            picture.save(file, "PNG")
            file.seek(0)
            yield index, {
                "image": file,
                "caption": emoji.name,
                "group": emoji.group,
                "subgroup": emoji.subgroup,
                "codepoints": emoji.codepoints,
            }
        if len(lacking) == len(names):
            raise SdjaxError(f"the font has none of the {len(names)} emoji listed")
        if lacking:
            _log.warning(
                "the font lacks %d of %d emoji: %s", len(lacking), len(names), ", ".join(lacking)
            )


def open_emoji(
    subset: str = "all", data_dir: str | None = None, config="noto", split: str = "train"
) -> TfdsSource:
    """The emoji of a subset (see `emoji_subset`), drawn and stored in data_dir on first use.

    config: "noto", or an EmojiConfig with a name of its own for another font or list.
    """
    only = emoji_subset(subset)
    builder = Emoji(data_dir=data_dir, config=config, file_format="array_record")
    if not builder.data_path.exists():  # what would be refused after the work is refused before it
        _, names = builder.drawn_from()
        check_subset(subset, {group for e in names for group in (e.group, e.subgroup)})
    prepare(builder)
    groups = set()

    def kept(texts):
        groups.update((texts["group"], texts["subgroup"]))
        return only(texts)

    source = TfdsSource(builder, split, only=kept)
    check_subset(subset, groups)
    if not len(source):
        raise SdjaxError(f"no emoji belongs to the subset {subset!r}")
    return source
