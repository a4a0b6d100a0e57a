"""The correctness net: random load on an engine, every answer compared with what dense weights give."""
