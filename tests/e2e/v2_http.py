"""tritonclient's HTTP client as the tests use it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def tensor_input(name: str, tensor: np.ndarray[Any, Any], *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    made.set_data_from_numpy(tensor, binary_data=binary)
    return made


def refused(call: Any, status: int) -> str:
    with pytest.raises(InferenceServerException) as refusal:
        call()
    assert refusal.value.status() == str(status), refusal.value.message()
    message = str(refusal.value.message())
    assert "an exception occurred in the client" not in message
    return message
