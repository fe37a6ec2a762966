"""Images that the tests of layers share."""

import pytest
import torch


@pytest.fixture
def images():
    """16 images of 8 x 8 pixels, four patches of ``FakeEncoder``."""
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
