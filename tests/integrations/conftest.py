# SPDX-License-Identifier: MIT
"""The frameworks run offline, and leave nothing behind for the next test."""

import os

import pytest

# before the first import of a framework
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Lightning's command line calls what jsonargparse has renamed
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its settings in singletons."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
