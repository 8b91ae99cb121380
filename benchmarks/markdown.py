"""A table in Markdown."""

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """Rows of pipes, without the index."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in [table.columns, *table.to_numpy(dtype=object)]]
    return "\n".join([lines[0], "|---" * len(table.columns) + "|", *lines[1:]])
