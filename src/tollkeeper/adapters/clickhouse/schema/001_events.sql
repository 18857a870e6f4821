-- Every record, as booked: the columns of domain/events.py Record, instants as DateTime64.
-- The provider's cost is kept as what is earned on it (`margin_nanos`, the cost without it), which is 0 for most.
-- Codecs: measured on the real traces; texts of callers (ids) are most of the bytes.
-- The deduplication window makes a repeated append change nothing (see store.py); it counts parts, and one
-- append makes a part per month that it touches.
CREATE TABLE IF NOT EXISTS events
(
    account_id LowCardinality(String) CODEC(ZSTD),
    project_id LowCardinality(String) CODEC(ZSTD),
    key_id LowCardinality(String) CODEC(ZSTD),
    occurred_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    received_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    id String CODEC(ZSTD),
    revision UInt16 CODEC(T64, ZSTD),
    sign Int8 CODEC(T64, ZSTD),
    amendment_id String CODEC(ZSTD),
    kind LowCardinality(String) CODEC(ZSTD),
    method LowCardinality(String) CODEC(ZSTD),
    route LowCardinality(String) CODEC(ZSTD),
    status UInt16 CODEC(T64, ZSTD),
    error_type LowCardinality(String) CODEC(ZSTD),
    denied_reason LowCardinality(String) CODEC(ZSTD),
    latency_us Nullable(Int64) CODEC(T64, ZSTD),
    bytes_out Int64 CODEC(T64, ZSTD),
    model LowCardinality(String) CODEC(ZSTD),
    prompt_tokens Int64 CODEC(T64, ZSTD),
    cached_prompt_tokens Int64 CODEC(T64, ZSTD),
    completion_tokens Int64 CODEC(T64, ZSTD),
    reasoning_tokens Int64 CODEC(T64, ZSTD),
    cache LowCardinality(String) CODEC(ZSTD),
    credits Int64 CODEC(T64, ZSTD),
    cost_nanos Int64 CODEC(ZSTD),
    estimated_cost_nanos Int64 CODEC(ZSTD),
    cost_state LowCardinality(String) CODEC(ZSTD),
    price_version LowCardinality(String) CODEC(ZSTD),
    tags Map(LowCardinality(String), String) CODEC(ZSTD),
    quantities Map(LowCardinality(String), Int64) CODEC(ZSTD),
    margin_nanos Int64 CODEC(ZSTD),
    variant LowCardinality(String) CODEC(ZSTD),
    adjustment_nanos Int64 CODEC(ZSTD)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (account_id, occurred_at, id)
SETTINGS non_replicated_deduplication_window = 10000;
