-- The last batch of each installation that may have been appended: noted, and synced, before the batch is. Compared
-- with the ledger at the start (domain/pairing.py). One row per installation, after merges. The engine in this process
-- has a file instead (adapters/batch_marks.py), which takes a tenth of the time.
CREATE TABLE IF NOT EXISTS batches
(
    installation_id String,
    epoch String,
    batch UInt64,
    begun_at DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree(batch)
ORDER BY installation_id
SETTINGS
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1;

-- The records of an append that is compared with what is there (repeats.py). Made once, and not for each comparison:
-- on a full disk the engine leaves an empty description of a new table, and then cannot start. Writers of one store
-- tell their rows apart by `writer`.
DROP TABLE IF EXISTS repeated_append SYNC;

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
    amendment_id String
)
ENGINE = Memory;

-- A batch may be repeated a week later, with others in between: those of a server are counted by time too.
ALTER TABLE events MODIFY SETTING replicated_deduplication_window_seconds = 604800;

ALTER TABLE event_ids MODIFY SETTING replicated_deduplication_window_seconds = 604800;

ALTER TABLE usage_rollups MODIFY SETTING replicated_deduplication_window_seconds = 604800;
