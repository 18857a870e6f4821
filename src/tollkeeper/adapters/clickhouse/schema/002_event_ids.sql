-- Where the event or amendment of an id is: id first, since UUIDv7 ids are ordered by time and a batch of new
-- ones then touches only the end of the table. The minute finds the record in `events` and, in id order,
-- compresses to almost nothing, which the microsecond does not.
CREATE TABLE IF NOT EXISTS event_ids
(
    id String CODEC(ZSTD),
    account_id LowCardinality(String) CODEC(ZSTD),
    occurred_minute DateTime('UTC') CODEC(Delta, ZSTD)
)
ENGINE = MergeTree
ORDER BY (id, account_id)
SETTINGS non_replicated_deduplication_window = 10000;

-- One row per revision, since an amendment may move an event to another minute.
CREATE MATERIALIZED VIEW IF NOT EXISTS event_ids_of_events TO event_ids AS
SELECT id, account_id, toStartOfMinute(occurred_at) AS occurred_minute
FROM events
WHERE sign = 1;

-- A void appends only a row of sign -1; its id too must be known.
CREATE MATERIALIZED VIEW IF NOT EXISTS event_ids_of_amendments TO event_ids AS
SELECT amendment_id AS id, account_id, toStartOfMinute(occurred_at) AS occurred_minute
FROM events
WHERE amendment_id <> '';
