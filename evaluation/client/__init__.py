"""A client of servers that embed texts."""
