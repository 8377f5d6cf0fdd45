"""Chat templates of models whose tokenizers carry none."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant."
    " The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA_V1_1 = (
    "{% set given = messages[0]['role'] == 'system' %}"
    f"{{{{ bos_token }}}}{{{{ messages[0]['content'] if given else \"{_SYSTEM}\" }}}}{{{{ ' ' }}}}"
    "{% for message in (messages[1:] if given else messages) %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The format that Vicuna 1.1 to 1.5 were trained on, FastChat's conversation template `vicuna_v1.1`."""


def give_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Gives the tokenizer of the model called `name` a chat template, where it has none and one is known.

    As FastChat does, the model's name tells: `lmsys/vicuna-7b-v1.3`, or a folder called like it.
    """
    if tokenizer.chat_template is None and "vicuna" in name.lower():
        tokenizer.chat_template = VICUNA_V1_1
