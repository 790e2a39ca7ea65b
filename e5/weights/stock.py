"""transformers' own module for a config.json, without its weights. Importing this module takes 2.5 s."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel
from transformers.initialization import no_init_weights

from e5.errors import WeightsError


def build(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The bare model, uninitialized; on torch's meta device it takes no memory. Runs no code of the folder.

    Raises WeightsError for a config.json that this release of transformers does not know or cannot build.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the validators of configurations raise their own types
        raise _failed(folder, error) from error
    config.use_cache = False  # keys and values of a decoder, which only generation needs
    try:
        with no_init_weights(), device:
            # attn_implementation: the file's own may name a repository of kernels, which transformers would download.
            return AutoModel.from_config(config, dtype=dtype, attn_implementation=None, trust_remote_code=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # constructors check little: torch's errors for impossible sizes arrive here, too
        raise _failed(folder, error) from error


def _failed(folder: Path, error: Exception) -> WeightsError:
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return WeightsError(
        f"transformers {transformers.__version__} cannot build the model of {folder / 'config.json'} ({cause:.200}): "
        "use another release, or a model that needs no code of its own"
    )
