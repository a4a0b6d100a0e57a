"""The terminal dashboard. It keeps no state of its own: everything shown comes from the daemon, over the client."""
