"""Whether the Python that a process is to have is there.

Ray tries without end to start a worker whose interpreter is missing, or has no Ray, and says so in
its own logs alone. On this machine it can be asked beforehand.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import ray

from skyrl_kernel.errors import CapabilityError

_KEY = "py_executable"
_ASKS = (
    "import importlib.metadata as m; print(*{one.version for one in m.distributions(name='ray')})"
)
_LONGEST_S = 60.0


def require_python(environment: Mapping[str, Any], who: str) -> None:
    """Refuse an interpreter of this machine that cannot be a process of this Ray.

    Args:
        environment: Ray's ``runtime_env``. A command of several words, such as ``uv run``, makes
            its interpreter when it is called, and is not asked.
        who: The process.

    Raises:
        CapabilityError: It is no program, or has another Ray or none.
    """
    words = shlex.split(str(environment.get(_KEY) or ""))
    if len(words) != 1:
        return
    asked = f"{who}: {_KEY}={words[0]} of its runtime_env"
    program = shutil.which(words[0])
    if program is None:
        raise CapabilityError(
            f"{asked} is no program on this machine; name the interpreter of an environment that has "
            '"skyrl-kernel[ray]" and the plugins of this process'
        )
    told = subprocess.run(
        [program, "-c", _ASKS],
        env={**os.environ, **environment.get("env_vars", {})},
        capture_output=True,
        text=True,
        timeout=_LONGEST_S,
        check=False,
    )
    if (found := told.stdout.strip()) != ray.__version__:
        raise CapabilityError(
            f"{asked} has {f'Ray {found}' if found else 'no Ray'}, and this run has Ray {ray.__version__}; "
            f"{program} -m pip install ray=={ray.__version__}"
        )
