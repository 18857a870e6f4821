-- The view as schema 6 told it.
CREATE MATERIALIZED VIEW usage_rollups_of_events TO usage_rollups AS
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
    sumMapIf(h.latency_bins, tier <> 'day') AS latency_bins,
    sumMapIf(h.minutes, tier IN ('hour', 'keys_hour', 'kinds_hour')) AS minutes,
    min(h.first_at_us) AS first_at_us,
    max(h.last_at_us) AS last_at_us,
    sum(h.corrections) AS corrections
FROM (
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
        toInt64(countIf(e.sign = -1)) AS corrections
    FROM events AS e
    GROUP BY
        account_id, hour, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache
) AS h
ARRAY JOIN ['hour', 'day', 'keys_hour', 'keys_day', 'kinds_hour', 'kinds_day'] AS tier
GROUP BY
    account_id, tier, at, project_id, key_id, kind, method, route, status, error_type, denied_reason, model, cache;
