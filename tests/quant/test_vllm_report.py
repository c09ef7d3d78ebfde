# SPDX-License-Identifier: Apache-2.0
"""What the log says of a loaded model."""

import logging
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from aerie.quant import vllm_report


class FakeLinear(LinearBase):
    """A layer as the report sees it."""

    def __init__(self, method: object, **attributes: object) -> None:
        torch.nn.Module.__init__(self)
        self.quant_method: Any = method
        self.params_dtype = torch.float32
        for name, value in attributes.items():
            setattr(self, name, value)


class Holder:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Marlin: ...


class Tiles:
    def description(self) -> str:
        return "Tiles (float32 outside)"


class Method: ...


class UnquantizedLinearMethod: ...


class FakeModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Module() for _ in range(12)])
        for layer in self.layers:
            layer.proj = FakeLinear(Method(), scheme=Holder(kernel=Tiles()))
            layer.gate = FakeLinear(UnquantizedLinearMethod())
            layer.experts = FakeLinear(Holder(experts_cls=Marlin))
        self.fc = FakeLinear(Holder(kernel=Tiles()))
        self.norm = torch.nn.LayerNorm(4)


def test_a_line_a_kernel_names_every_layer() -> None:
    assert vllm_report.summary(FakeModel()) == [
        "Tiles (float32 outside) serves 13 layers: layers.*.proj (12), fc",
        "UnquantizedLinearMethod (float32) serves 12 layers: layers.*.gate (12)",
        "Marlin serves 12 layers: layers.*.experts (12)",
    ]


def test_a_worker_tells_of_the_main_model_and_the_draft() -> None:
    worker = vllm_report.TellsKernels()
    worker.model_runner = Holder(get_model=FakeModel, drafter=Holder(model=FakeModel()), speculator=Holder())
    assert worker.aerie_kernels() == [f"FakeModel: {line}" for line in vllm_report.summary(FakeModel())] * 2


def test_loaders_are_wrapped_once_and_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    monkeypatch.setattr(BaseModelLoader, "load_model", lambda loader, config, prefix="": model)
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener = Listener()
    monkeypatch.setattr(vllm_report.logger, "handlers", [listener])
    monkeypatch.setattr(vllm_report.logger, "level", logging.INFO)
    vllm_report.register()
    wrapped = BaseModelLoader.load_model
    vllm_report.register()
    assert BaseModelLoader.load_model is wrapped
    loader: Any = BaseModelLoader
    assert loader.load_model(object(), object(), prefix="draft") is model
    assert lines == [f"FakeModel: {line}" for line in vllm_report.summary(model)]
