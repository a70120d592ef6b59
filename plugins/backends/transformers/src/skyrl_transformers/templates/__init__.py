"""Chat templates by name: ``generator.chat_template``.

| name | earlier turns |
|---|---|
| ``qwen3_with_thinking`` | as they were, so that rows of several steps can be joined |
| ``qwen3_without_thinking`` | without their thinking, as the policy then sees them |
"""

from importlib.resources import files
from pathlib import Path

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.errors import ConfigError

_SUFFIX = ".jinja"


def template_names() -> list[str]:
    """The names, sorted."""
    entries = files(__name__).iterdir()
    return sorted(e.name.removesuffix(_SUFFIX) for e in entries if e.name.endswith(_SUFFIX))


def configured_template(config: GeneratorConfig) -> str | None:
    """The text of the template that ``generator.chat_template`` names; None for the model's own.

    Raises:
        ConfigError: There is no such template or file, or it would change nothing.
    """
    source, name = config.chat_template.source, config.chat_template.name_or_path
    if name is None:
        return None
    if source == "file":
        path = Path(name).expanduser()
        try:
            return path.read_text()
        except OSError as error:
            raise ConfigError(
                f"generator.chat_template.name_or_path={name}: {error.strerror}; with source=file it "
                "is the path of a Jinja template"
            ) from error
    if name not in template_names():
        raise ConfigError(
            f"generator.chat_template.name_or_path={name} names no template; there are: "
            f"{', '.join(template_names())}. For a file of your own: generator.chat_template.source=file"
        )
    if name == "qwen3_without_thinking" and not config.step_wise_trajectories:
        raise ConfigError(
            "generator.chat_template.name_or_path=qwen3_without_thinking rewrites earlier turns, and "
            "in one row for the whole conversation they stand as they were sampled; set "
            "generator.step_wise_trajectories=true, so that each turn is a row with its own history"
        )
    return (files(__name__) / f"{name}{_SUFFIX}").read_text()
