"""Load a model and its tokenizer from the name that a user gives: `bundled`, a local folder or file, or a hub name.

torch and transformers are imported inside the functions, so that resolving a name doesn't cost seconds of start-up.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from entmtp.errors import EntMTPError
from entmtp.models.loading.bundled import bundled_model
from entmtp.models.loading.chat_templates import set_chat_template
from entmtp.models.loading.quiet import quiet_loading
from entmtp.settings import BALANCED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from entmtp.models.bare_config import BareConfig
    from entmtp.models.bare_model import BareModel

BUNDLED = "bundled"
GGUF = ".gguf"
HUB_SECONDS = 10.0


def resolve_model(name: str) -> Path | str:
    """Location of model `name`: a local folder, a GGUF file, or `name` itself if the hub has it.

    A GGUF file in a hub's repository is named `org/name:file.gguf`, and is downloaded.

    When the hub can't be reached, a complete copy in the local hub cache is used. The hub is requested once, with a
    timeout of ten seconds, because without a network transformers would retry for minutes.

    Raises:
        EntMTPError: if the model is not found; the message lists where it was looked for.
    """
    if name == BUNDLED:
        return bundled_model()
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(name, path)
    if path.is_file() and path.suffix == GGUF:
        return path.absolute()
    if path.exists():
        raise EntMTPError(
            f"model {name!r}: is a file, but not a {GGUF} file; give one, or the folder that holds config.json and the"
            " weights"
        )
    repository, colon, file = name.partition(":")
    if colon and file.endswith(GGUF):
        return _hub_file(name, repository, file)
    return _resolve_hub_name(name)


def _hub_file(name: str, repository: str, file: str) -> Path:
    """Path of a hub's file in the local cache, after a download where it is absent there."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, file, local_files_only=True))
    except HFValidationError:
        raise EntMTPError(
            f"model {name!r}: no such file ({Path(name).absolute()}), and {repository!r} is no hub name like org/name"
        ) from None
    problem = _hub_problem(repository)
    if problem is None:
        try:
            return Path(hf_hub_download(repository, file))
        except Exception as error:  # the hub client's HTTP library, and so its errors' type, changes between versions
            problem = _first_line(error)
    raise EntMTPError(
        f"model {name!r}: not found; looked for the file in the hub cache {constants.HF_HUB_CACHE}, and on the hub"
        f" ({problem}); check the name, or give a local file, a folder or 'bundled'"
    )


def _checked_folder(name: str, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise EntMTPError(f"model {name!r}: the folder {folder.absolute()} holds no config.json; give a model's folder")
    return folder.absolute()


def _resolve_hub_name(name: str) -> Path | str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    problem = _hub_problem(name)
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


def _hub_problem(name: str) -> str | None:
    """Reason why the model can't be read from the hub; None if it can."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except OfflineModeIsEnabled:
        return "not requested: offline mode is on"
    except RepositoryNotFoundError:
        return "no such model there, or no access to it"
    except HfHubHTTPError as error:
        return f"it answered {error.response.status_code}"
    except Exception as error:  # the hub client's HTTP library, and so its errors' type, changes between its versions
        return f"it could not be reached: {_first_line(error)}"
    return None


def load_weights(
    name: str, dtype: "torch.dtype | str" = "float32", device: str = "cpu"
) -> "tuple[BareModel | PreTrainedModel, PreTrainedTokenizerBase]":
    """Load what a backbone needs of model `name`, and its tokenizer.

    Of a GGUF file in float32 on a CPU these are the weights alone. Elsewhere it is transformers' model, as
    :func:`load_model` returns it.

    Raises:
        EntMTPError: as :func:`load_model`.
    """
    import torch

    source = resolve_model(name)
    if _is_gguf(source) and checked_dtype(dtype) == torch.float32 and device == "cpu":
        return _read_gguf(name, source)
    return load_model(name, dtype, device)


def load_model(
    name: str,
    dtype: "torch.dtype | str" = "float32",
    device: str = "cpu",
    attn_implementation: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load model `name` on `device`, in evaluation mode with frozen weights, and its tokenizer.

    The device 'balanced' distributes the model over all GPUs.

    Raises:
        EntMTPError: if the model is absent, is not a decoder-only language model, or can't be loaded with these
            settings.
    """
    from entmtp.models.multi_gpu import check_all_on_gpus, check_gpus

    source = resolve_model(name)
    torch_dtype = checked_dtype(dtype)
    multi_device = device == BALANCED
    if multi_device:
        check_gpus()
    target = None if multi_device else _device(device)
    if _is_gguf(source):
        if target is None:
            raise EntMTPError(f"device {device!r}: a GGUF file runs on one device; use 'cpu' or 'cuda'")
        return _load_gguf(name, source, torch_dtype, target)
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = _config(name, source)
    _check_decoder_only(name, config)
    try:
        # A local folder loads in seconds; only a download shows progress bars.
        with quiet_loading() if isinstance(source, Path) else contextlib.nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                source,
                config=config,
                dtype=torch_dtype,
                attn_implementation=attn_implementation,
                device_map=BALANCED if multi_device else None,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise EntMTPError(f"model {name!r}: cannot be loaded: {_first_line(error)}") from error
    _check_all_loaded(name, loading["missing_keys"])
    check_all_on_gpus(name, model)
    set_chat_template(name, tokenizer)
    return (model if target is None else model.to(target)).eval().requires_grad_(False), tokenizer


def _is_gguf(source: Path | str) -> TypeGuard[Path]:
    return isinstance(source, Path) and source.suffix == GGUF


def _load_gguf(
    name: str, source: Path, dtype: "torch.dtype", device: "torch.device"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model and tokenizer of a GGUF file: in its blocks in float32 on a CPU, else as plain numbers."""
    import torch

    from entmtp.models.kernels.block_weight import dequantize_layers
    from entmtp.models.transformers_model import transformers_model

    weights, tokenizer = _read_gguf(name, source)
    model = transformers_model(weights)
    if dtype != torch.float32 or device.type != "cpu":
        dequantize_layers(model)
        model = cast(Any, model).to(device, dtype)
    return model, tokenizer


def _read_gguf(name: str, source: Path) -> "tuple[BareModel, PreTrainedTokenizerBase]":
    from entmtp.models.gguf.file import read_gguf
    from entmtp.models.gguf.model import gguf_model
    from entmtp.models.gguf.tokenizer import gguf_tokenizer

    file = read_gguf(source)
    model, tokenizer = gguf_model(file), gguf_tokenizer(file)
    set_chat_template(name, tokenizer)
    return model, tokenizer


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of model `name`, without the model.

    Raises:
        EntMTPError: if the model is not found, or its tokenizer can't be read.
    """
    source = resolve_model(name)
    if _is_gguf(source):
        from entmtp.models.gguf.file import read_gguf
        from entmtp.models.gguf.tokenizer import gguf_tokenizer

        tokenizer = gguf_tokenizer(read_gguf(source))
        set_chat_template(name, tokenizer)
        return tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EntMTPError(f"model {name!r}: its tokenizer cannot be read: {_first_line(error)}") from error
    set_chat_template(name, tokenizer)
    return tokenizer


def max_positions(name: str) -> int:
    """Context length of model `name` in tokens, from its configuration.

    Raises:
        EntMTPError: if the model is not found, or its configuration can't be read.
    """
    return positions_of(_text_config(name, resolve_model(name)))


def vocabulary_size(name: str) -> int:
    """Vocabulary size of model `name`, from its configuration.

    Raises:
        EntMTPError: if the model is not found, or its configuration can't be read.
    """
    return int(_text_config(name, resolve_model(name)).vocab_size)


def _text_config(name: str, source: "Path | str") -> "PretrainedConfig | BareConfig":
    if _is_gguf(source):
        from entmtp.models.gguf.configuration import configuration
        from entmtp.models.gguf.file import read_gguf

        return configuration(read_gguf(source))
    return _config(name, source).get_text_config()


def _config(name: str, source: "Path | str") -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return cast(Any, AutoConfig).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EntMTPError(f"model {name!r}: its configuration cannot be read: {_first_line(error)}") from error


def positions_of(config: "PretrainedConfig | BareConfig") -> int:
    """Context length of a model in tokens; practically unlimited where its configuration has no limit."""
    return getattr(config, "max_position_embeddings", None) or 2**30


def checked_dtype(dtype: "torch.dtype | str") -> "torch.dtype":
    """The torch type called ``dtype``; raise EntMTPError if models can't run in it."""
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
    """Raise EntMTPError if the files lack a parameter, which transformers would fill with random numbers."""
    if missing:
        raise EntMTPError(
            f"model {name!r}: its files lack {len(missing)} of its parameters, {min(missing)} among them; "
            "give a folder whose config.json and weights belong together"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def encode_chat(tokenizer: "PreTrainedTokenizerBase", text: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
    """Token ids of `text` as a user's turn, after the messages of `history` (role and content).

    The turns are written with the tokenizer's chat template. Without a template they are the plain texts, with an empty
    line between them.

    Raises:
        EntMTPError: if there is nothing to continue (empty text and no template), or the template refuses the messages.
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
