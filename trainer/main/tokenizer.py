# SPDX-License-Identifier: Apache-2.0
"""The demo's tokenizer: byte-level BPE trained on the corpus, ChatML with a reasoning block."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END]
# The reasoning parser needs one id for each, and the text must survive `skip_special_tokens`, as in Qwen3.
VISIBLE_TOKENS = [THINK_START, THINK_END, "<tool_call>", "</tool_call>"]


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train on `texts`; any input can be encoded, since the base alphabet is all 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(VISIBLE_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(VISIBLE_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=(Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8"),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
