"""The truth in SQL: one set of tables for SQLite and PostgreSQL, spoken to through SQLAlchemy Core."""
