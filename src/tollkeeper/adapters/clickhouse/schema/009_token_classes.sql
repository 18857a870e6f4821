-- The view of 003 counts three more token classes: cached image tokens, and video tokens. It is told anew (tables.py
-- REVIEWED). Bodies of providers were not read into these names before, so that nothing is derived again.
DROP VIEW IF EXISTS usage_rollups_of_events;
