"""Chat templates of models whose tokenizers have none."""

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


def set_chat_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Set the chat template of the tokenizer of model `name`, if it has none and one is known.

    As in FastChat, the model's name selects it: `lmsys/vicuna-7b-v1.3`, or a folder with such a name.
    """
    if tokenizer.chat_template is None and "vicuna" in name.lower():
        tokenizer.chat_template = VICUNA_V1_1
