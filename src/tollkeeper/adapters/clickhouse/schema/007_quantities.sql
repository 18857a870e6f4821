-- What a request used beside the four token columns (micro-units), its variant, what was earned on it, and adjustments,
-- which are records and no requests. Files 001 and 003 tell the tables and the view with them; rows and rollups from
-- before have none of it, so that nothing is derived again (tables.py REVIEWED).
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS quantities Map(LowCardinality(String), Int64) CODEC(ZSTD),
    ADD COLUMN IF NOT EXISTS margin_nanos Int64 CODEC(ZSTD),
    ADD COLUMN IF NOT EXISTS variant LowCardinality(String) CODEC(ZSTD),
    ADD COLUMN IF NOT EXISTS adjustment_nanos Int64 CODEC(ZSTD);

ALTER TABLE usage_rollups
    ADD COLUMN IF NOT EXISTS quantities SimpleAggregateFunction(sumMap, Map(String, Int128)) CODEC(LZ4),
    ADD COLUMN IF NOT EXISTS quantity_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    ADD COLUMN IF NOT EXISTS margin_nanos SimpleAggregateFunction(sum, Int64) CODEC(LZ4),
    ADD COLUMN IF NOT EXISTS adjustments SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    ADD COLUMN IF NOT EXISTS adjustment_nanos SimpleAggregateFunction(sum, Int64) CODEC(LZ4);

DROP VIEW IF EXISTS usage_rollups_of_events;
