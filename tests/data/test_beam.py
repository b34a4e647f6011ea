"""A data set that tensorflow-datasets prepares by Apache Beam, on this machine."""

import numpy as np
import pytest

from sdjax.data import DataConfig, open_source
from sdjax.data.tfds_source import TfdsSource
from tests.data.shards import number_of, picture


@pytest.mark.full
def test_what_beam_prepares_is_read_by_index_and_by_its_files(tmp_path):
    beam = pytest.importorskip("apache_beam")
    import io

    import tensorflow_datasets as tfds

    class Numbered(tfds.core.GeneratorBasedBuilder):
        """Pictures that tell their numbers."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
            }))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            def example(n):
                return n, {"image": io.BytesIO(picture(n)), "caption": f"picture {n}"}

            return beam.Create(range(20)) | beam.Map(example)

    builder = Numbered(data_dir=tmp_path, file_format="array_record")
    options = beam.options.pipeline_options.PipelineOptions(runner="DirectRunner")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_options=options),
        file_format="array_record",
    )
    by_index = TfdsSource(builder)
    by_files = open_source(DataConfig(f"array_record:{builder.data_path}", image_size=8))
    for source in (by_index, by_files):
        numbers = [number_of(source[i]["image"]) for i in range(len(source))]
        np.testing.assert_array_equal(sorted(numbers), np.arange(20))
        assert [source[i]["caption"] for i in range(20)] == [f"picture {n}" for n in numbers]
