"""The GPUs of this machine, by the names that CUDA has for them."""

from __future__ import annotations

import os
import shutil
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus() -> list[str]:
    """Those that this process may use, before JAX has looked; none under `JAX_PLATFORMS=cpu`."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if "GPU" in line]
