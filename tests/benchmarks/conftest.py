# SPDX-License-Identifier: Apache-2.0
"""A tiny model whose every answer is known, and a draft whose every guess is: no training, no luck.

The main model's attention and MLP write nothing into the residual stream, so its next token is a function of the last
one: `successor`. The draft sees the hidden state from before its newest token and never advances it: its first guess
is always right, its later ones never are, so that each step makes two tokens.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from aerie.draft_models.checkpoint import write_draft
from aerie.draft_models.contract import DraftConfig, tensor_shapes

WORDS, HIDDEN, LAYERS = 64, 64, 8
END, ASK, ANSWER = 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}<ask> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)


def successor(token: int) -> int:
    """Words count up; an answer starts at 40 and ends after the last word, so that it has 25 tokens."""
    return END if token in (END, WORDS - 1) else 40 if token in (ASK, ANSWER) else token + 1


def write_main(directory: Path) -> None:
    """The main model with its tokenizer and chat template."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=False, eos_token_id=END,
        bos_token_id=None, pad_token_id=END,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    embed = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN))[0]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(embed)
        model.lm_head.weight.zero_()
        for token in range(WORDS):
            # A sum where several tokens share a successor; sharp enough that sampling at temperature 1 follows it.
            model.lm_head.weight[successor(token)] += 4 * embed[token]
    model.save_pretrained(directory)
    words = {"<end>": END, "<ask>": ASK, "<answer>": ANSWER, **{f"w{index}": index for index in range(3, WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)


def write_guesser(directory: Path, main: Path, *, right: bool = True) -> None:
    """The draft; with `right` false every guess is wrong."""
    model = Qwen3ForCausalLM.from_pretrained(main)
    embed = model.model.embed_tokens.weight.detach()
    config = DraftConfig(
        hidden_size=HIDDEN, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        vocab_size=WORDS, draft_vocab_size=WORDS, target_hidden_size=HIDDEN, aux_hidden_state_layer_ids=(1, 3, 5),
        gate="elementwise", rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=256,
    )  # fmt: skip
    tensors = {name: torch.zeros(shape) for name, shape in tensor_shapes(config).items()}
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name].fill_(1)
    tensors["fc.weight"][:, :HIDDEN] = torch.eye(HIDDEN)
    for token in range(WORDS):
        guess = successor(successor(token)) if right else ASK
        tensors["lm_head.weight"][guess] += 4 * embed[token]
    write_draft(directory, config, tensors, {"seed": 0})


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`main` and `draft` folders."""
    root = tmp_path_factory.mktemp("pair")
    write_main(root / "main")
    write_guesser(root / "draft", root / "main")
    return SimpleNamespace(main=root / "main", draft=root / "draft")
