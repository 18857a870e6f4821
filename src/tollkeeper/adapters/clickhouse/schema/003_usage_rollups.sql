-- Usage summed into UTC hours and days: sums of sign * value, so that corrections subtract. Each record counts
-- once in each tier, so that a question reads the smallest tier that can tell (queries.py):
--   hour        every dimension, latencies, minutes       day         every dimension, neither
--   keys_hour   by project and key only, both             keys_day    the same per day, latencies
--   kinds_hour  by all the others, both                   kinds_day   the same per day, latencies
-- A maximum or minimum cannot be subtracted: those of hours with corrections are taken from `events`.
-- Small granules, since a question wants few rows of a tier and reads no less than a granule.
-- LZ4, since a report decodes much and keeps little: with ZSTD it takes up to twice as long.
CREATE TABLE IF NOT EXISTS usage_rollups
(
    account_id LowCardinality(String),
    tier Enum8('hour', 'day', 'keys_hour', 'keys_day', 'kinds_hour', 'kinds_day'),
    at DateTime('UTC') CODEC(Delta, LZ4),
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
    requests SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    errors SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    failed SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    denied SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    prompt_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    cached_prompt_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    completion_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    reasoning_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    cost_nanos SimpleAggregateFunction(sum, Int64) CODEC(LZ4),
    estimated_cost_nanos SimpleAggregateFunction(sum, Int64) CODEC(LZ4),
    credits SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    unpriced SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    cache_hits SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    cache_misses SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    bytes_out SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    latency_count SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    latency_sum_us SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    latency_max_us SimpleAggregateFunction(max, Int64) CODEC(T64, LZ4),
    latency_bins SimpleAggregateFunction(sumMap, Map(UInt16, Int64)) CODEC(LZ4),
    minutes SimpleAggregateFunction(sumMap, Map(UInt8, Int64)) CODEC(ZSTD),
    first_at_us SimpleAggregateFunction(min, Int64) CODEC(Delta, LZ4),
    last_at_us SimpleAggregateFunction(max, Int64) CODEC(Delta, LZ4),
    corrections SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    quantities SimpleAggregateFunction(sumMap, Map(String, Int128)) CODEC(LZ4),
    quantity_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    margin_nanos SimpleAggregateFunction(sum, Int64) CODEC(LZ4),
    adjustments SimpleAggregateFunction(sum, Int64) CODEC(T64, LZ4),
    adjustment_nanos SimpleAggregateFunction(sum, Int64) CODEC(LZ4)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYear(at)
ORDER BY (
    account_id, tier, at, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache
)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 1024;

-- The token classes are those of domain/quantities.py; a test holds the two together. A record with an adjustment is no
-- request. Quantities are micro-units: sums of these pass 64 bits.
-- The bin of a latency is that of domain/rollups.py latency_bin: the divisor is the same double, ln 1.02.
-- Per-record forms of these sums are in queries.py; a test holds the two together.
-- Records are summed per hour first, so that a tier costs as much as it has rows. Bins are gathered in arrays and
-- counted once a row, as runs of a sorted one: to merge maps bin by bin costs more than all the rest.
CREATE MATERIALIZED VIEW IF NOT EXISTS usage_rollups_of_events TO usage_rollups AS
WITH
    latency_us -> toUInt16(if(latency_us <= 0, 0, 1 + floor(log(latency_us) / 0.01980262729617973))) AS bin_of,
    bins -> arrayFilter(
        (place, bin, next) -> bin <> next,
        arrayEnumerate(bins), bins, arrayResize(arrayPopFront(bins), length(bins), 65535)
    ) AS ends_of,
    (bins, ends) -> CAST(
        (
            arrayMap(end -> bins[end], ends),
            arrayMap((end, before) -> toInt64(end) - before, ends, arrayResize(arrayPushFront(ends, 0), length(ends)))
        ),
        'Map(UInt16, Int64)'
    ) AS counts_of,
    bins -> counts_of(bins, ends_of(bins)) AS counted
SELECT
    h.account_id AS account_id,
    tier,
    if(tier IN ('day', 'keys_day', 'kinds_day'), toStartOfDay(h.hour), h.hour) AS at,
    if(tier IN ('kinds_hour', 'kinds_day'), '', h.project_id) AS project_id,
    if(tier IN ('kinds_hour', 'kinds_day'), '', h.key_id) AS key_id,
    if(tier IN ('keys_hour', 'keys_day'), '', h.kind) AS kind,
    if(tier IN ('keys_hour', 'keys_day'), '', h.method) AS method,
    if(tier IN ('keys_hour', 'keys_day'), '', h.route) AS route,
    if(tier IN ('keys_hour', 'keys_day'), 0, h.status) AS status,
    if(tier IN ('keys_hour', 'keys_day'), '', h.error_type) AS error_type,
    if(tier IN ('keys_hour', 'keys_day'), '', h.denied_reason) AS denied_reason,
    if(tier IN ('keys_hour', 'keys_day'), '', h.model) AS model,
    if(tier IN ('keys_hour', 'keys_day'), '', h.cache) AS cache,
    sum(h.requests) AS requests,
    sumIf(h.requests, h.status >= 400 OR h.error_type <> '') AS errors,
    sumIf(h.requests, h.status >= 400) AS failed,
    sumIf(h.requests, h.denied_reason <> '') AS denied,
    sum(h.prompt_tokens) AS prompt_tokens,
    sum(h.cached_prompt_tokens) AS cached_prompt_tokens,
    sum(h.completion_tokens) AS completion_tokens,
    sum(h.reasoning_tokens) AS reasoning_tokens,
    sum(h.cost_nanos) AS cost_nanos,
    sum(h.estimated_cost_nanos) AS estimated_cost_nanos,
    sum(h.credits) AS credits,
    sum(h.unpriced) AS unpriced,
    sumIf(h.requests, h.cache = 'hit') AS cache_hits,
    sumIf(h.requests, h.cache = 'miss') AS cache_misses,
    sum(h.bytes_out) AS bytes_out,
    sum(h.latency_count) AS latency_count,
    sum(h.latency_sum_us) AS latency_sum_us,
    max(h.latency_max_us) AS latency_max_us,
    mapSubtract(
        counted(arraySort(groupArrayArrayIf(h.added_bins, tier <> 'day'))),
        counted(arraySort(groupArrayArrayIf(h.removed_bins, tier <> 'day')))
    ) AS latency_bins,
    sumMapIf(h.minutes, tier IN ('hour', 'keys_hour', 'kinds_hour')) AS minutes,
    min(h.first_at_us) AS first_at_us,
    max(h.last_at_us) AS last_at_us,
    sum(h.corrections) AS corrections,
    sumMap(h.quantities) AS quantities,
    sum(h.quantity_tokens) AS quantity_tokens,
    sum(h.margin_nanos) AS margin_nanos,
    sum(h.adjustments) AS adjustments,
    sum(h.adjustment_nanos) AS adjustment_nanos
FROM (
    SELECT
        account_id,
        toStartOfHour(e.occurred_at) AS hour,
        project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache,
        sumIf(e.sign, e.adjustment_nanos = 0) AS requests,
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
        groupArrayIf(bin_of(ifNull(e.latency_us, 0)), e.latency_us IS NOT NULL AND e.sign = 1) AS added_bins,
        groupArrayIf(bin_of(ifNull(e.latency_us, 0)), e.latency_us IS NOT NULL AND e.sign = -1) AS removed_bins,
        sumMapIf(map(toUInt8(toMinute(e.occurred_at)), toInt64(e.sign)), e.adjustment_nanos = 0) AS minutes,
        min(if(e.sign = 1 AND e.adjustment_nanos = 0, toUnixTimestamp64Micro(e.occurred_at), 9223372036854775807))
            AS first_at_us,
        max(if(e.sign = 1 AND e.adjustment_nanos = 0, toUnixTimestamp64Micro(e.occurred_at), 0)) AS last_at_us,
        toInt64(countIf(e.sign = -1)) AS corrections,
        sumMapIf(
            CAST(mapApply((k, v) -> (k, e.sign * toInt128(v)), e.quantities) AS Map(String, Int128)),
            notEmpty(e.quantities)
        ) AS quantities,
        sum(e.sign * intDiv(
            arraySum(
                (k, v) -> if(k IN (
                    'cache_write_tokens', 'cache_write_1h_tokens', 'audio_prompt_tokens', 'audio_cached_prompt_tokens',
                    'image_prompt_tokens', 'image_cached_prompt_tokens', 'video_prompt_tokens',
                    'audio_completion_tokens', 'image_completion_tokens', 'video_completion_tokens'
                ), v, 0),
                mapKeys(e.quantities), mapValues(e.quantities)
            ),
            1000000
        )) AS quantity_tokens,
        sum(e.sign * e.margin_nanos) AS margin_nanos,
        toInt64(sumIf(e.sign, e.adjustment_nanos <> 0)) AS adjustments,
        sum(e.sign * e.adjustment_nanos) AS adjustment_nanos
    FROM events AS e
    GROUP BY
        account_id, hour, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache
) AS h
ARRAY JOIN ['hour', 'day', 'keys_hour', 'keys_day', 'kinds_hour', 'kinds_day'] AS tier
GROUP BY
    account_id, tier, at, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache;
