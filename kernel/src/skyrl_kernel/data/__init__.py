"""Data sets: read from files and plugins, checked row by row, put into a seeded order.

`load_prompts` reads and checks, `filter_long` drops what is too long for the
model, `PromptOrder` says which prompt is next and how many steps there are.
"""

from skyrl_kernel.data.dataset import Dataset, load_prompts
from skyrl_kernel.data.length import filter_long
from skyrl_kernel.data.order import PromptOrder
from skyrl_kernel.data.reader import Resolve, read_file, read_source
from skyrl_kernel.data.schema import check_messages, check_row

__all__ = [
    "Dataset",
    "PromptOrder",
    "Resolve",
    "check_messages",
    "check_row",
    "filter_long",
    "load_prompts",
    "read_file",
    "read_source",
]
