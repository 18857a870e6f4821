-- What was appended outlives the machine's power, since the ledger then forgets it: parts are synced to the disk
-- before an append returns, and merged ones before those that they replace are removed, which is at once in process.
-- The removal of many replaced parts at a time would start a thread for each, without making it faster.
ALTER TABLE events MODIFY SETTING
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,
    concurrent_part_removal_threshold = 1000000;

ALTER TABLE event_ids MODIFY SETTING
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,
    concurrent_part_removal_threshold = 1000000;

ALTER TABLE usage_rollups MODIFY SETTING
    fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,
    concurrent_part_removal_threshold = 1000000;
