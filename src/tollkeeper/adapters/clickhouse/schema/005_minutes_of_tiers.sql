-- The view of 003 tells minutes of keys_hour and kinds_hour too, so that a peak is read from few rows. It is made anew,
-- and what it derives with it (tables.py REDERIVED).
DROP VIEW IF EXISTS usage_rollups_of_events;
