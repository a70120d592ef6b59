"""Questions about SQLite databases, answered with a query after looking around."""
