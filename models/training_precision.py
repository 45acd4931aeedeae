"""What a training multiplies with."""

from __future__ import annotations

import torch
from accelerate.state import PartialState
from accelerate.utils import parse_flag_from_env

from edgecls.models.recipe import Recipe
from edgecls.runtime.cpu import cpu_flags
from edgecls.runtime.errors import InputError

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def precision(recipe: Recipe) -> str:
    """Half precision where it is not emulated, which takes several times as long as fp32.

    Raises:
        InputError: The recipe wants a CPU's bfloat16, and this CPU has none.
    """
    # Not whether there is a GPU, which `accelerate launch --cpu` leaves alone; the accelerator takes this state over.
    if PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if recipe.bf16 and not cpu_flags() & _BF16_FLAGS:
        raise InputError("this CPU has no instructions for bfloat16 (AVX512-BF16, AMX, ARM's BF16): leave out --bf16.")
    return "bf16" if recipe.bf16 else "no"
