"""Alembic's migrations: one module per released schema, run by `storage.migrating` before anything else is opened."""
