"""What is kept: one schema, one writer, many readers."""

from parallax.storage.store import Store as Store
