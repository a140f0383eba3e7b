"""How a classifier learns: what its settings refuse, and the defaults that hold together."""

from __future__ import annotations

from typing import Any

import pytest

from sppnet.classification.schedule import TrainingSizes
from sppnet.classification.settings import ClassifierSettings
from sppnet.errors import UserError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learn": "backbone"}, "learn must be one of head, all: got 'backbone'"),
        ({"optimiser": "adam"}, "optimiser must be one of adamw, sgd: got 'adam'"),
        ({"precision": "float16"}, "precision must be one of auto, bfloat16, float32: got 'float16'"),
        ({"epochs": 0}, "epochs must be at least 1: got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 1: got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be between 0 and 1: got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be between 0 and 1: got nan"),
        ({"held_out_share": 1.0}, "held_out_share must be between 0 and 1: got 1.0"),
        ({"backbone_rate": 0.0}, "backbone_rate must be above 0 and at most 1: got 0.0"),
        ({"least_region": 1.5}, "least_region must be above 0 and at most 1: got 1.5"),
        ({"weight_decay": -0.1}, "weight_decay and light must be 0 or more: got -0.1 and 0.1"),
        ({"light": -1.0}, "weight_decay and light must be 0 or more: got 0.01 and -1.0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295: got -1"),
        ({"learn": "head", "sizes": TrainingSizes("multi")}, "training sizes 'multi' need learn='all'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ClassifierSettings(**wrong)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_settings_with_the_same_values_are_the_same_training() -> None:
    """A stopped run is found again by what its settings show."""
    assert repr(ClassifierSettings()) == repr(ClassifierSettings(sizes=TrainingSizes("native")))
    assert repr(ClassifierSettings()) != repr(ClassifierSettings(precision="float32"))
