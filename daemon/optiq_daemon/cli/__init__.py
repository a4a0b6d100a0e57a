"""The ``optiq`` command. A command's module is imported when it is called, and grpc or rich later still."""
