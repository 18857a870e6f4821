-- The view of 003 counts bins of latencies in another way, with the same result: it is told anew (tables.py REVIEWED).
DROP VIEW IF EXISTS usage_rollups_of_events;
