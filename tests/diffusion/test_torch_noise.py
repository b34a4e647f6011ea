"""NumPy's imitation of torch.randn against torch."""

import numpy as np
import pytest
import torch

from sdjax.diffusion.torch_noise import torch_normal
from sdjax.errors import SdjaxError


@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1, 2**33 + 5])
@pytest.mark.parametrize("shape", [(16,), (17,), (3, 7, 5), (1, 4, 64, 64)])
def test_equals_torch(seed, shape):
    theirs = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_allclose(torch_normal(seed, shape), theirs, atol=5e-7, rtol=0)


def test_too_few_values_are_refused():
    with pytest.raises(SdjaxError, match="at least 16"):
        torch_normal(0, (15,))
