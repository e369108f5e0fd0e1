"""The sizes of `sections`: a byte-level BPE tokenizer with a chat template, and a Llama of six million parameters."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nereid_zoo.sections.briefs import sample_brief
from nereid_zoo.sections.chat import CHAT_TEMPLATE, END, PAD, START
from nereid_zoo.sections.html import write_section

CONTEXT = 512
"""Tokens of a whole conversation the model was trained on; the longest brief with the longest section takes about 330."""


def train_tokenizer(folder: Path, size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE from briefs and sections of pairs that training may see; saved to `folder`, loaded if it is there."""
    if not folder.exists():
        rng = Random(5)
        texts = []
        for _ in range(12_000):
            brief = sample_brief(rng)
            texts += [brief.text, write_section(brief.demand, rng)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=END,
            pad_token=PAD,
            additional_special_tokens=[START],
            model_max_length=CONTEXT,
            clean_up_tokenization_spaces=False,
        )
        made.chat_template = CHAT_TEMPLATE
        made.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Six layers, 256 wide, 8 heads over 4 key-value heads, embeddings tied."""
    vocabulary = -(-len(tokenizer) // 64) * 64
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
