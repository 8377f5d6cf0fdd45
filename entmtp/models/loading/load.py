"""From the name a user gives (`bundled`, a local folder, a hub name) to a loaded model and its tokenizer.

torch and transformers are imported inside the functions: naming a model must not cost seconds of start-up.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from entmtp.errors import EntMTPError
from entmtp.models.loading.bundled import bundled_model_folder
from entmtp.models.loading.chat_templates import give_template
from entmtp.models.loading.quiet import quiet_loading

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "bundled"
HUB_SECONDS = 10.0
SAMPLED_PARAMETERS = 8
SAMPLED_VALUES = 256


def resolve_model(name: str) -> Path | str:
    """Where the model called `name` is: a local folder, or `name` itself if the hub has it.

    A hub model that lies complete in the local hub cache is used from there when the hub cannot be reached. The hub is
    asked once, for at most ten seconds: without a network transformers would retry for minutes.

    Raises:
        EntMTPError: it is nowhere; says what was looked for where.
    """
    if name == BUNDLED:
        return bundled_model_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked_folder(name, folder)
    if folder.exists():
        raise EntMTPError(f"model {name!r}: is a file; give the folder that holds config.json and the weights")
    return _resolve_hub_name(name)


def _checked_folder(name: str, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise EntMTPError(f"model {name!r}: the folder {folder.absolute()} holds no config.json; give a model's folder")
    return folder.absolute()


def _resolve_hub_name(name: str) -> Path | str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    problem = _ask_hub(name)
    if problem is None:
        return name
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        raise EntMTPError(
            f"model {name!r}: no such folder ({Path(name).absolute()}), and not a hub name like org/name"
        ) from None
    except LocalEntryNotFoundError:
        raise EntMTPError(
            f"model {name!r}: not found; looked for a folder {Path(name).absolute()}, for a copy in the hub cache "
            f"{constants.HF_HUB_CACHE}, and on the hub ({problem}); check the name, or give a local folder or 'bundled'"
        ) from None


def _ask_hub(name: str) -> str | None:
    """None if the hub has the model and lets us read it, else the reason in a few words."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except OfflineModeIsEnabled:
        return "not asked: offline mode is on"
    except RepositoryNotFoundError:
        return "no such model there, or no access to it"
    except HfHubHTTPError as error:
        return f"it answered {error.response.status_code}"
    except Exception as error:  # the hub client's HTTP library, and so its errors' type, changes between its versions
        return f"it could not be reached: {_first_line(error)}"
    return None


def load_model(
    name: str,
    dtype: "torch.dtype | str" = "float32",
    device: str = "cpu",
    attn_implementation: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model called `name`, in evaluation mode with frozen weights on `device`, and its tokenizer.

    'balanced' for a device spreads it over all GPUs.

    Raises:
        EntMTPError: the model is absent, is not a decoder-only language model, or cannot be loaded as asked.
    """
    from entmtp.models.multi_gpu import BALANCED, check_all_on_gpus, check_gpus

    place = resolve_model(name)
    torch_dtype = checked_dtype(dtype)
    spread = device == BALANCED
    if spread:
        check_gpus()
    target = None if spread else _device(device)
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = _config(name, place)
    _check_decoder_only(name, config)
    try:
        # A local folder loads in seconds; only a download deserves progress bars.
        with quiet_loading() if isinstance(place, Path) else contextlib.nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                place,
                config=config,
                dtype=torch_dtype,
                attn_implementation=attn_implementation,
                device_map=BALANCED if spread else None,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise EntMTPError(f"model {name!r}: cannot be loaded: {_first_line(error)}") from error
    _check_all_loaded(name, loading["missing_keys"])
    check_all_on_gpus(name, model)
    give_template(name, tokenizer)
    return (model if target is None else model.to(target)).eval().requires_grad_(False), tokenizer


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of the model called `name`, without the model.

    Raises:
        EntMTPError: the model is nowhere, or has no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(resolve_model(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EntMTPError(f"model {name!r}: its tokenizer cannot be read: {_first_line(error)}") from error
    give_template(name, tokenizer)
    return tokenizer


def max_positions(name: str) -> int:
    """Tokens that the model called `name` can look back on, by its configuration.

    Raises:
        EntMTPError: the model is nowhere, or its configuration can't be read.
    """
    return positions_of(_config(name, resolve_model(name)).get_text_config())


def vocabulary_size(name: str) -> int:
    """Tokens that the model called `name` can write, by its configuration.

    Raises:
        EntMTPError: the model is nowhere, or its configuration can't be read.
    """
    return int(_config(name, resolve_model(name)).get_text_config().vocab_size)


def _config(name: str, place: "Path | str") -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return cast(Any, AutoConfig).from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EntMTPError(f"model {name!r}: its configuration cannot be read: {_first_line(error)}") from error


def positions_of(config: "PretrainedConfig") -> int:
    """Tokens that a model can look back on; practically unbounded where its configuration names no bound."""
    return getattr(config, "max_position_embeddings", None) or 2**30


def checked_dtype(dtype: "torch.dtype | str") -> "torch.dtype":
    """The type of a name; raises EntMTPError for one that models don't run in."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    found = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    if found is None:
        raise EntMTPError(f"dtype {dtype!r}: unknown; use float32, bfloat16 or float16")
    return found


def _device(device: str) -> "torch.device":
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        raise EntMTPError(f"device {device!r}: unknown; use 'cpu', 'cuda', 'cuda:N' or 'balanced'") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise EntMTPError(f"device {device!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use 'cpu'")
    return found


def _check_decoder_only(name: str, config: "PretrainedConfig") -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        raise EntMTPError(f"model {name!r}: {config.model_type} is an encoder–decoder; only decoder-only models work")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise EntMTPError(f"model {name!r}: {config.model_type} is not a causal language model")


def _check_all_loaded(name: str, missing: set[str]) -> None:
    """transformers fills a parameter that the files lack with random numbers and goes on; we do not."""
    if missing:
        raise EntMTPError(
            f"model {name!r}: its files lack {len(missing)} of its parameters, {min(missing)} among them; "
            "give a folder whose config.json and weights belong together"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def encode_chat(tokenizer: "PreTrainedTokenizerBase", text: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
    """Token ids of `text` as a user's turn in the tokenizer's chat template, behind the messages of `history` (role and
    content); without a template, of the plain texts with an empty line between them.

    Raises:
        EntMTPError: there is nothing to continue (empty text and no template), or the template refuses the messages.
    """
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in (*history, ("user", text))]
    if tokenizer.chat_template is None:
        ids = tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"]
    else:
        try:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        except TemplateError as error:
            raise EntMTPError(f"prompt: the model's chat template refuses it: {_first_line(error)}") from error
    if not ids:
        raise EntMTPError("prompt '': is empty; give some text")
    return [int(token) for token in ids]


def model_fingerprint(model: "PreTrainedModel") -> str:
    """SHA-256 that tells this model from others: its shape, and a sample of the values of eight of its parameters.

    The sample is rounded to bfloat16, so that a model has one fingerprint whether it is loaded in float32, bfloat16 or
    the type it was saved in. Costs milliseconds at any size.
    """
    config = model.config.get_text_config()
    shape = (config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size)
    return sampled_fingerprint(shape, list(model.named_parameters()))


def sampled_fingerprint(shape: tuple[object, ...], parameters: "Sequence[tuple[str, torch.Tensor]]") -> str:
    """As :func:`model_fingerprint`, of these ``parameters`` and what else tells their owner from others."""
    digest = hashlib.sha256(repr(shape).encode())
    last = len(parameters) - 1
    for place in sorted({i * last // (SAMPLED_PARAMETERS - 1) for i in range(SAMPLED_PARAMETERS)}):
        name, values = parameters[place]
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(_sample(values))
    return digest.hexdigest()


def _sample(values: "torch.Tensor") -> bytes:
    """Bytes of up to 256 evenly spaced values, rounded to bfloat16."""
    import torch

    flat = values.detach().reshape(-1)
    picked = flat[:: max(1, flat.numel() // SAMPLED_VALUES)][:SAMPLED_VALUES]
    return bytes(picked.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
