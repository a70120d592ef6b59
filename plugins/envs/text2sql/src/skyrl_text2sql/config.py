"""Where the databases are, and how long a query may take."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from skyrl_kernel.config import Section

Seconds = Annotated[float, Field(gt=0)]


class Text2SqlConfig(Section):
    """``environment.text2sql``: databases and limits."""

    db_path: str = "/home/ray/default/sql_data"
    """Folder of the collections (SkyRL: environment.skyrl_gym.text2sql.db_path)."""
    max_turns: Annotated[int, Field(ge=1)] = 5
    """Replies that the model may give, unless the row says; ``generator.max_turns`` caps both."""
    query_timeout_s: Seconds = 5.0
    """Processor time of a query that the model tries."""
    solution_timeout_s: Seconds = 30.0
    """Processor time of the solution, and of the reference."""

    @field_validator("db_path")
    @classmethod
    def _expands(cls, path: str) -> str:
        return str(Path(path).expanduser())
