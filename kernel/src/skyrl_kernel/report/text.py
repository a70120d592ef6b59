"""From token ids to what they say, with the run's own tokenizer where it can be made."""

from collections.abc import Sequence
from pathlib import Path

from skyrl_kernel.errors import ModelError
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.run.folder import RunFolder

_UNKNOWN = "\ufffd"
"""What a tokenizer says for bytes that are no whole character."""
_MAX_JOINED = 8
"""Tokens that may make one character; more that stay unreadable are shown one by one."""


class Pieces:
    """Token id → its text, as it reads in the middle of a line."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._anchor = self._find_anchor()

    def piece(self, token: int) -> str:
        """The text of one token; special tokens have none."""
        if token not in self._pieces:
            # Some decoders drop the blank before the first word of a text.
            ids, before = self._anchor
            text = self._decode([*ids, token])
            self._pieces[token] = (
                text.removeprefix(before) if text.startswith(before) else self._decode([token])
            )
        return self._pieces[token]

    def joined(self, tokens: Sequence[int]) -> dict[int, str]:
        """Texts of tokens that only say something together.

        A character of several bytes may be spread over tokens. Its first token
        gets it, the others get nothing.

        Returns:
            Place in ``tokens`` → text, for those that differ from `piece`.
        """
        texts: dict[int, str] = {}
        place = 0
        while place < len(tokens):
            stop = place + 1
            if _UNKNOWN in self.piece(tokens[place]):
                for end in range(place + 2, min(place + _MAX_JOINED, len(tokens)) + 1):
                    text = self._decode(tokens[place:end])
                    if _UNKNOWN not in text:
                        texts |= {place: text} | {other: "" for other in range(place + 1, end)}
                        stop = end
                        break
            place = stop
        return texts

    def end_tokens(self) -> list[int]:
        """Ids that end a turn."""
        return sorted(int(token) for token in self._tokenizer.eos_token_ids)

    def _find_anchor(self) -> tuple[list[int], str]:
        """Tokens to decode another one behind, and their text."""
        ids = [int(token) for token in self._tokenizer.encode("a:")]
        return ids, self._decode(ids)

    def _decode(self, tokens: Sequence[int]) -> str:
        import numpy as np

        return self._tokenizer.decode(np.asarray(tokens, np.int32))


def find_pieces(folder: RunFolder) -> tuple[Pieces | None, str]:
    """The run's tokenizer, and why there is none.

    Nothing is downloaded: a model on the hub is looked for where the run has
    put it.
    """
    from skyrl_kernel import prepared
    from skyrl_kernel.models import locate_model
    from skyrl_kernel.plan import make_plan

    try:
        plugins = [f"{one['kind']}/{one['name']}" for one in folder.read_plugins()]
        plan = make_plan(plugins, [folder.config], training=False)
        path, key = plan.tree.trainer.policy.model.path, "trainer.policy.model.path"
        root, name = plan.tree.trainer.export_path, plan.tree.trainer.run_name
        exports = Path(root).expanduser() / name if root else folder.export
        model = _local_model(path, exports) or locate_model(path, key, plan.manager, plan.config)
        return Pieces(prepared.make_tokenizer(plan, model)), ""
    except Exception as error:  # plugins of another machine or version may raise anything
        reason = str(error).strip().splitlines()
        return None, reason[0] if reason else type(error).__name__


def _local_model(path: str, exports: Path) -> Path | None:
    """A directory with the run's tokenizer; None if only a plugin can tell.

    Raises:
        ModelError: It is on the hub, and not here.
    """
    from skyrl_kernel.plan import named_source

    given = Path(path).expanduser()
    if given.is_dir():
        return given
    made = [one for one in exports.glob("global_step_*") if (one / "config.json").is_file()]
    if made:
        return max(made, key=lambda one: one.stat().st_mtime)
    if named_source(path) is not None:
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, allow_patterns=["*.json"], local_files_only=True))
    except Exception as error:  # the library's own types, which differ by version
        raise ModelError(f"the model {path} is not on this machine") from error
