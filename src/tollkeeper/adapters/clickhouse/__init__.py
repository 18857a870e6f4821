"""The usage store on ClickHouse: in process (chDB) or on a server, behind one implementation."""

from tollkeeper.adapters.clickhouse.store import ClickHouseUsageStore

__all__ = ["ClickHouseUsageStore"]
