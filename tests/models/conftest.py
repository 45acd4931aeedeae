from __future__ import annotations

from pathlib import Path

import pytest
from training_pictures import write_network, write_pictures

from edgecls.models.training_data import TrainingData


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return TrainingData.open(write_pictures(tmp_path_factory.mktemp("pictures"), 20))


@pytest.fixture
def network(tmp_path: Path) -> str:
    return write_network(tmp_path)
