"""How a brief and its section stand in a conversation: ChatML, as a template and as plain text; needs no library."""

from __future__ import annotations

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, as Qwen and others use it."""


def conversation(brief: str, section: str = "") -> str:
    """What the chat template makes of one brief, with or without its answer."""
    opening = f"{START}user\n{brief.strip()}{END}\n{START}assistant\n"
    return opening + (f"{section}{END}\n" if section else "")
