"""Any tensorflow-datasets data set by index, read without TensorFlow."""
import difflib

from sdjax.data.content import Content, Stamps
from sdjax.data.images import decode_image
from sdjax.data.tfds_import import tfds
from sdjax.errors import SdjaxError

_CAPTION_KEYS = ("caption", "text")
_LABEL_KEYS = ("label", "labels")


class TfdsSource:
    """A prepared data set, by index.

    source[i] gives {"image": uint8 [height, width, 3], "caption": str} and, where the data set has
    class labels, "label": int. Without a text feature the label's name is the caption; without
    either it is "".

    Args:
      builder: a tensorflow-datasets builder; prepared as array_record first where it is not.
      split: e.g. "train", or with tensorflow-datasets' slices "train[:10%]".
      image_key, caption_key: the features to read; caption_key by default caption, text, or the
        label's name.
      only: keeps the items for which only(texts) holds, texts being a dictionary of the features
        that are no pictures, as str.

    Raises:
      SdjaxError: where the data set cannot be prepared, or lacks the split or a feature.
      BrokenItem: from source[i], where picture i cannot be decoded.
    """

    def __init__(self, builder, split="train", image_key="image", caption_key=None, only=None):
        self.builder, self.split = builder, split
        prepare(builder)
        features = dict(builder.info.features)
        if split.partition("[")[0] not in builder.info.splits:
            raise SdjaxError(
                f"data set {builder.name} has no split {split!r}; it has "
                f"{', '.join(builder.info.splits)}"
            )
        self.image_key = _feature(builder, image_key, tfds.features.Image, "image_key")
        self.label_key = next(
            (k for k in _LABEL_KEYS if isinstance(features.get(k), tfds.features.ClassLabel)), None
        )
        self.caption_key = next((k for k in _CAPTION_KEYS if k in features), None)
        if caption_key is not None:
            self.caption_key = _feature(builder, caption_key, object, "caption_key")
        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=decoders)
        self._kept = None
        if only is not None:
            self._kept = [i for i in range(len(self._records)) if only(self._texts(i))]

    def __len__(self):
        return len(self._records) if self._kept is None else len(self._kept)

    def __getitem__(self, index):
        record = self._records[self._at(index)]
        item = {
            "image": decode_image(record[self.image_key], self.name(index)),
            "caption": self._caption(record),
        }
        if self.label_key is not None:
            item["label"] = int(record[self.label_key])
        return item

    def name(self, index) -> str:
        """What item `index` is called in messages."""
        return f"{self.builder.name} item {self._at(index)}"

    def content(self, stamps: Stamps, count) -> Content:
        """What the items are: by the files of the data set and the choice among its features."""
        paths = sorted(path for path in self.builder.data_path.iterdir() if path.is_file())
        chosen = self.split, self.image_key, self.caption_key, self.label_key, self._kept
        return Content({p.name: stamps.of(p, p.name) for p in paths}, made_by=repr(chosen))

    def _at(self, index):
        return index if self._kept is None else self._kept[index]

    def _texts(self, index):
        record = self._records[index]
        return {key: _text(record[key]) for key in record if key != self.image_key}

    def _caption(self, record):
        if self.caption_key is not None:
            feature = self.builder.info.features[self.caption_key]
            value = record[self.caption_key]
            if isinstance(feature, tfds.features.ClassLabel):
                return feature.int2str(int(value))
            return _text(value)
        if self.label_key is not None:
            return self.builder.info.features[self.label_key].int2str(int(record[self.label_key]))
        return ""


def open_tfds(name, split="train", data_dir=None, image_key="image", caption_key=None):
    """The data set of that name (e.g. "mnist", "celeb_a", "coco_captions/2017"), as TfdsSource."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        # The list of community data sets is on a server, and its client needs TensorFlow.
        names = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see tensorflow.org/datasets"
        raise SdjaxError(f"tensorflow-datasets knows no data set {name!r}; {hint}") from error
    except (ValueError, AssertionError) as error:  # an unknown version or configuration
        first = str(error).strip().splitlines()[0]
        raise SdjaxError(f"tensorflow-datasets cannot open {name!r}: {first}") from error
    return TfdsSource(builder, split, image_key, caption_key)


def prepare(builder) -> None:
    """Downloads and prepares a data set as array_record, unless that is done already."""
    if builder.data_path.exists():
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise SdjaxError(
                f"{builder.data_path} is prepared as {builder.info.file_format.value}, which needs "
                "TensorFlow to read; prepare it with file_format=array_record in another data_dir"
            )
        return
    try:
        builder.download_and_prepare(file_format="array_record")
    except SdjaxError:
        raise
    except Exception as error:  # whatever a data set's own code, a server or a disk comes up with
        first = (str(error).splitlines() or [""])[0]
        raise SdjaxError(
            f"data set {builder.name} could not be prepared in {builder.data_path}: "
            f"{type(error).__name__}: {first}"
        ) from error


def _feature(builder, key, kind, option):
    features = builder.info.features
    if key not in features or not isinstance(features[key], kind):
        fitting = [k for k in features if isinstance(features[k], kind)]
        raise SdjaxError(
            f"data set {builder.name} has no such feature {key!r}; set {option} to one of "
            f"{', '.join(fitting) or '(it has none that would do)'}"
        )
    return key


def _text(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
