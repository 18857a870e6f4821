-- Usage summed into UTC hours, per every dimension: sums of sign * value, so that corrections subtract.
-- A maximum or minimum cannot be subtracted: those of hours with corrections are taken from `events`.
CREATE TABLE IF NOT EXISTS usage_hourly
(
    account_id LowCardinality(String),
    hour DateTime('UTC') CODEC(Delta, ZSTD),
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
    requests SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    prompt_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    cached_prompt_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    completion_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    reasoning_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    cost_nanos SimpleAggregateFunction(sum, Int64) CODEC(ZSTD),
    estimated_cost_nanos SimpleAggregateFunction(sum, Int64) CODEC(ZSTD),
    credits SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    unpriced SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    bytes_out SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    latency_count SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    latency_sum_us SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD),
    latency_max_us SimpleAggregateFunction(max, Int64) CODEC(T64, ZSTD),
    latency_bins SimpleAggregateFunction(sumMap, Map(UInt16, Int64)) CODEC(ZSTD),
    minutes SimpleAggregateFunction(sumMap, Map(UInt8, Int64)) CODEC(ZSTD),
    first_at_us SimpleAggregateFunction(min, Int64) CODEC(Delta, ZSTD),
    last_at_us SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD),
    corrections SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYear(hour)
ORDER BY (account_id, hour, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache)
SETTINGS non_replicated_deduplication_window = 10000;

-- The bin of a latency is that of domain/rollups.py latency_bin: the divisor is the same double, ln 1.02.
-- Per-record forms of these sums are in queries.py; a test holds the two together.
CREATE MATERIALIZED VIEW IF NOT EXISTS usage_hourly_of_events TO usage_hourly AS
SELECT
    account_id,
    toStartOfHour(e.occurred_at) AS hour,
    project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache,
    sum(e.sign) AS requests,
    sum(e.sign * e.prompt_tokens) AS prompt_tokens,
    sum(e.sign * e.cached_prompt_tokens) AS cached_prompt_tokens,
    sum(e.sign * e.completion_tokens) AS completion_tokens,
    sum(e.sign * e.reasoning_tokens) AS reasoning_tokens,
    sum(e.sign * e.cost_nanos) AS cost_nanos,
    sumIf(e.sign * e.cost_nanos, e.cost_state = 'estimated') AS estimated_cost_nanos,
    sum(e.sign * e.credits) AS credits,
    sumIf(e.sign, e.cost_state = 'unpriced') AS unpriced,
    sum(e.sign * e.bytes_out) AS bytes_out,
    sumIf(e.sign, e.latency_us IS NOT NULL) AS latency_count,
    sum(e.sign * ifNull(e.latency_us, 0)) AS latency_sum_us,
    max(if(e.sign = 1, ifNull(e.latency_us, -1), -1)) AS latency_max_us,
    sumMapIf(
        map(
            toUInt16(if(ifNull(e.latency_us, 0) <= 0, 0, 1 + floor(log(ifNull(e.latency_us, 1)) / 0.01980262729617973))),
            toInt64(e.sign)
        ),
        e.latency_us IS NOT NULL
    ) AS latency_bins,
    sumMap(map(toUInt8(toMinute(e.occurred_at)), toInt64(e.sign))) AS minutes,
    min(if(e.sign = 1, toUnixTimestamp64Micro(e.occurred_at), 9223372036854775807)) AS first_at_us,
    max(if(e.sign = 1, toUnixTimestamp64Micro(e.occurred_at), 0)) AS last_at_us,
    countIf(e.sign = -1) AS corrections
FROM events AS e
GROUP BY
    account_id, hour, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache;
