-- Events that were removed when their time was over (expiry.py). Nothing of the tables derived from them is removed:
-- rollups and ids = what `events` says + what these tables say. Rows are added only, a step of an expiry at a time.
-- How many records of an account and UTC day a step removed; and their ids in `event_ids`, as a count and a sum of hashes.
CREATE TABLE IF NOT EXISTS expired_days
(
    step UInt64,
    account_id LowCardinality(String),
    day Date,
    records Int64,
    ids Int64,
    ids_hash Int64,
    received_max_us Int64
)
ENGINE = MergeTree
ORDER BY (account_id, day)
SETTINGS
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1;

-- Their sums, as the view of `usage_rollups` made them for the tier `hour`, from which all other tiers follow.
CREATE TABLE IF NOT EXISTS expired_rollups
(
    step UInt64 CODEC(T64, ZSTD),
    account_id LowCardinality(String) CODEC(ZSTD),
    at DateTime('UTC') CODEC(Delta, ZSTD),
    project_id LowCardinality(String) CODEC(ZSTD),
    key_id LowCardinality(String) CODEC(ZSTD),
    kind LowCardinality(String) CODEC(ZSTD),
    method LowCardinality(String) CODEC(ZSTD),
    route LowCardinality(String) CODEC(ZSTD),
    status UInt16 CODEC(T64, ZSTD),
    error_type LowCardinality(String) CODEC(ZSTD),
    denied_reason LowCardinality(String) CODEC(ZSTD),
    model LowCardinality(String) CODEC(ZSTD),
    cache LowCardinality(String) CODEC(ZSTD),
    requests Int64 CODEC(T64, ZSTD),
    errors Int64 CODEC(T64, ZSTD),
    failed Int64 CODEC(T64, ZSTD),
    denied Int64 CODEC(T64, ZSTD),
    prompt_tokens Int64 CODEC(T64, ZSTD),
    cached_prompt_tokens Int64 CODEC(T64, ZSTD),
    completion_tokens Int64 CODEC(T64, ZSTD),
    reasoning_tokens Int64 CODEC(T64, ZSTD),
    cost_nanos Int64 CODEC(ZSTD),
    estimated_cost_nanos Int64 CODEC(ZSTD),
    credits Int64 CODEC(T64, ZSTD),
    unpriced Int64 CODEC(T64, ZSTD),
    cache_hits Int64 CODEC(T64, ZSTD),
    cache_misses Int64 CODEC(T64, ZSTD),
    bytes_out Int64 CODEC(T64, ZSTD),
    latency_count Int64 CODEC(T64, ZSTD),
    latency_sum_us Int64 CODEC(T64, ZSTD),
    latency_max_us Int64 CODEC(T64, ZSTD),
    latency_bins Map(UInt16, Int64) CODEC(ZSTD),
    minutes Map(UInt8, Int64) CODEC(ZSTD),
    first_at_us Int64 CODEC(Delta, ZSTD),
    last_at_us Int64 CODEC(Delta, ZSTD),
    corrections Int64 CODEC(T64, ZSTD),
    quantities Map(String, Int128) CODEC(ZSTD),
    quantity_tokens Int64 CODEC(T64, ZSTD),
    margin_nanos Int64 CODEC(ZSTD),
    adjustments Int64 CODEC(T64, ZSTD),
    adjustment_nanos Int64 CODEC(ZSTD)
)
ENGINE = MergeTree
PARTITION BY toYear(at)
ORDER BY (account_id, at)
SETTINGS
    index_granularity = 1024,
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1;

-- The extremes of their hours with corrections, of the records that were in force: these cannot be subtracted.
CREATE TABLE IF NOT EXISTS expired_extremes
(
    step UInt64,
    account_id LowCardinality(String),
    at DateTime('UTC'),
    project_id LowCardinality(String),
    key_id LowCardinality(String),
    kind LowCardinality(String),
    method LowCardinality(String),
    route LowCardinality(String),
    status UInt16,
    error_type LowCardinality(String),
    denied_reason LowCardinality(String),
    model LowCardinality(String),
    cache LowCardinality(String),
    latency_max_us Int64,
    first_at_us Int64,
    last_at_us Int64
)
ENGINE = MergeTree
ORDER BY (account_id, at)
SETTINGS
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1;

-- How far each step came: `summed` when the tables above have it whole, `removed` when its records are gone.
CREATE TABLE IF NOT EXISTS expiry_steps
(
    step UInt64,
    state Enum8('summed' = 1, 'removed' = 2)
)
ENGINE = MergeTree
ORDER BY step
SETTINGS
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1;

-- As 006 tells it, and when each record was received: one that is repeated may have expired since.
DROP TABLE IF EXISTS append_comparison;

CREATE TABLE IF NOT EXISTS append_comparison
(
    writer String,
    listed_at DateTime('UTC') DEFAULT now(),
    number UInt32,
    account_id String,
    occurred_at DateTime64(6, 'UTC'),
    id String,
    revision UInt16,
    sign Int8,
    amendment_id String,
    received_at DateTime64(6, 'UTC')
)
ENGINE = Memory;
