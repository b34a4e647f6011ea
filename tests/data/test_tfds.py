"""A small data set is really prepared as array_record and read back, without TensorFlow."""
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sdjax.data import DataConfig, loader, open_source
from sdjax.data.tfds_source import TfdsSource
from sdjax.errors import SdjaxError


class SdjaxTiny(tfds.core.GeneratorBasedBuilder):
    """Grey pictures that are as bright as their number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)),
            "text": tfds.features.Text(),
            "title": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        })
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(3)}

    def _generate_examples(self, number):
        for i in range(number):
            file = io.BytesIO()
            Image.new("RGB", (12 + i, 10), (i, i, i)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "text": f"nº {i}", "title": f"t{i}", "label": i % 2}


class SdjaxDefect(SdjaxTiny):
    """A data set whose preparation fails."""

    def _split_generators(self, dl_manager):
        raise OSError("the server is gone")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def config(data_dir, **options):
    options = {"source": "tfds:sdjax_tiny", "image_size": 8} | options
    return DataConfig(data_dir=data_dir, **options)


def test_text_and_labels_come_back(data_dir):
    source = open_source(config(data_dir))
    assert len(source) == 12
    item = source[5]
    assert item["caption"] == "nº 5" and item["label"] == 1
    assert item["image"].shape == (8, 8, 3) and (item["image"] == 5).all()
    assert len(open_source(config(data_dir, split="test"))) == 3
    assert len(open_source(config(data_dir, split="train[:5]"))) == 5


def test_its_files_alone_give_the_same(data_dir):
    whole = open_source(config(data_dir))
    files = open_source(config(None, source=f"array_record:{whole.raw.builder.data_path}"))
    assert [files[i]["caption"] for i in range(12)] == [whole[i]["caption"] for i in range(12)]
    np.testing.assert_array_equal(files[5]["image"], whole[5]["image"])
    others = config(None, source=f"array_record:{whole.raw.builder.data_path}", split="test")
    assert len(files) == 12 and len(open_source(others)) == 3


def test_batches(data_dir):
    choice = config(data_dir)
    batches = list(loader(open_source(choice), choice, 4, repeat=False))
    numbers = sorted(int(caption[3:]) for batch in batches for caption in batch["caption"])
    assert numbers == list(range(12))


@pytest.mark.parametrize("key, caption", [("title", "t3"), ("label", "odd")])
def test_the_caption_may_be_another_feature(data_dir, key, caption):
    assert open_source(config(data_dir, caption_key=key))[3]["caption"] == caption


def test_only_some_items(data_dir):
    builder = SdjaxTiny(data_dir=data_dir, file_format="array_record")
    source = TfdsSource(builder, only=lambda texts: texts["title"] in ("t2", "t7"))
    assert [source[i]["caption"] for i in range(len(source))] == ["nº 2", "nº 7"]
    assert source.name(1) == "sdjax_tiny item 7"


@pytest.mark.parametrize("options, message", [
    ({"source": "tfds:sdjax_tinny"}, "did you mean sdjax_tiny"),
    ({"source": "tfds:sdjax_tiny:9.9.9"}, "cannot open 'sdjax_tiny:9.9.9'"),
    ({"source": "tfds:sdjax_tiny/blue"}, "cannot open 'sdjax_tiny/blue'"),
    ({"split": "valid"}, "no split 'valid'; it has (test, train|train, test)"),
    ({"image_key": "picture"}, "no such feature 'picture'; set image_key to one of image"),
    ({"caption_key": "words"}, "no such feature 'words'; set caption_key"),
    ({"source": "tfds:sdjax_defect"}, "sdjax_defect could not be prepared.*the server is gone"),
])
def test_mistakes_get_one_clear_line(data_dir, options, message):
    with pytest.raises(SdjaxError, match=message) as caught:
        open_source(config(data_dir, **options))
    assert "\n" not in str(caught.value)


def test_another_file_format_is_refused(tmp_path):
    builder = SdjaxTiny(data_dir=str(tmp_path), file_format="riegeli")
    builder.data_path.mkdir(parents=True)
    with pytest.raises(SdjaxError, match="riegeli, which needs TensorFlow"):
        TfdsSource(builder)


def test_tensorflow_is_never_imported(data_dir):
    open_source(config(data_dir))
    assert "tensorflow" not in sys.modules


def test_opening_shapes_does_not_import_tensorflow_datasets():
    code = (
        "import sys; from sdjax.data import *; open_source(DataConfig())[0]; "
        "sys.exit('tensorflow_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_decode_to_bytes(data_dir):
    assert open_source(config(data_dir))[0]["image"].dtype == np.uint8


@pytest.mark.parametrize("missing", ["array_record", "tensorflow_datasets"])
@pytest.mark.parametrize("source", ["emoji", "tfds:mnist"])
def test_a_missing_package_is_one_line(missing, source, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("sdjax.data.", missing))]:
        if name.split(".")[-1] in ("tfds_import", "tfds_source", "emoji") or missing in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SdjaxError, match=f"{missing}.*: pip install tensorflow-datasets"):
        open_source(DataConfig(source=source))
