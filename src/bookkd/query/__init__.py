"""Questions to a book in SQL: statistics of every record as Parquet, and DuckDB over them. Extra `query`; no torch."""

from __future__ import annotations

from bookkd.query.records import record_statistics
from bookkd.query.sql import QueryResult, query
from bookkd.query.statistics import Statistics, open_statistics, write_statistics

__all__ = ["QueryResult", "Statistics", "open_statistics", "query", "record_statistics", "write_statistics"]
