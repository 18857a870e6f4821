-- What a request used beside the four token columns (micro-units), its variant, what was earned on it (its cost without
-- that of the provider), and adjustments, which are records and no requests. Rows from before have none of it.
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS quantities Map(LowCardinality(String), Int64) CODEC(ZSTD),
    ADD COLUMN IF NOT EXISTS margin_nanos Int64 CODEC(ZSTD),
    ADD COLUMN IF NOT EXISTS variant LowCardinality(String) CODEC(ZSTD),
    ADD COLUMN IF NOT EXISTS adjustment_nanos Int64 CODEC(ZSTD);
