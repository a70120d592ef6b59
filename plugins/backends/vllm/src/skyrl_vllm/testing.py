"""What a server answers, for tests that need none."""

from typing import Any


def answer(**changed: Any) -> dict[str, Any]:
    """A server's to one request for a completion: tokens 7, 8, 9 of policy versions 3, 4, 4.

    Args:
        changed: Overrides fields of its one choice.
    """
    choice = {
        "finish_reason": "length",
        "token_ids": [7, 8, 9],
        "logprobs": {"content": [{"token_id": t, "logprob": -t / 10} for t in (7, 8, 9)]},
        "weight_versions": [
            {"version": "3", "start": 0, "end": 1},
            {"version": "4", "start": 1, "end": 3},
        ],
    }
    return {"choices": [choice | changed]}
