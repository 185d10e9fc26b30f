"""What a start writes down of itself."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

from planet_dist.provenance import LIBRARIES, describe_start, device_name


def test_a_start_names_its_libraries_and_hides_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIPS_TOKEN", "abcdef123456")
    about = describe_start("paper1-resnet50", "https://me:secret77@host/chips?sig=abcdef123456", Accelerator(cpu=True))
    text = json.dumps(about)
    assert "secret77" not in text and "abcdef123456" not in text
    assert about["data"].endswith("@host/chips?***")
    assert set(about["versions"]) == set(LIBRARIES) and about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (about["recipe"], about["processes"], about["device"][:5]) == ("paper1-resnet50", 1, "CPU (")


def test_a_device_is_called_by_its_name() -> None:
    assert device_name(torch.device("cpu")).startswith("CPU (")
