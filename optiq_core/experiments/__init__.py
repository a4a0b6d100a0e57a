"""The comparison harness: tasks with checkable answers, and adapters that come with Optiq."""
