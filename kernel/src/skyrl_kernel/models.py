"""From a model's name to a directory that holds it."""

from pathlib import Path

from skyrl_kernel.config import ResolvedConfig
from skyrl_kernel.errors import ModelError
from skyrl_kernel.plan import named_source
from skyrl_kernel.plugins import PluginManager


def locate_model(path: str, key: str, manager: PluginManager, settings: ResolvedConfig) -> Path:
    """A local Hugging Face directory.

    Args:
        path: A directory, ``NAME:REST`` of a plugin, or a name on the Hugging Face hub.
        key: The config key that held it, for messages.
        manager: Has the plugin of ``NAME:REST`` loaded.
        settings: Passed to that plugin.

    Raises:
        ModelError: There is no such model, or the directory is none.
    """
    if named_source(path) is not None:
        found = manager.make("load_model", path.partition(":")[0], path=path, settings=settings)
        assert isinstance(found, Path)
        return found
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{key}={path} is a directory without config.json; a Hugging Face model directory has "
                "config.json, *.safetensors and the tokenizer's files"
            )
        return folder
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        state = "is a file" if folder.exists() else "does not exist"
        raise ModelError(
            f"{key}={path} {state}; name a Hugging Face directory, a hub name, or builtin:tiny"
        )
    return _download(path, key)


def _download(name: str, key: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{key}={name} is no local directory, and reading the Hugging Face hub needs "
            "'pip install huggingface-hub'"
        ) from error
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
            )
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{key}={name} is no local directory, and the Hugging Face hub did not give it ({reason}); "
            "name a directory, or builtin:tiny for the built-in model"
        ) from error
