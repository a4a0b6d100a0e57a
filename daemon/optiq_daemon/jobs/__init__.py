"""Training jobs: their records, who is next, whether one fits, and the trainer that runs it."""
