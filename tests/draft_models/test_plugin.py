# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from importlib.metadata import entry_points


def test_vllm_finds_the_plugin_by_its_entry_point() -> None:
    (entry,) = entry_points(group="vllm.general_plugins", name="aerie")
    assert entry.value == "aerie.plugin:register"


def test_registration_is_idempotent_and_imports_no_model_code() -> None:
    code = (
        "import sys; from aerie.plugin import register; from aerie.draft_models.contract import GATED_ARCHITECTURES;"
        "register(); register();"
        "from vllm import ModelRegistry; assert set(GATED_ARCHITECTURES) <= set(ModelRegistry.get_supported_archs());"
        "import torch; assert not torch.cuda.is_initialized();"
        "assert 'aerie.draft_models.vllm_model' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
