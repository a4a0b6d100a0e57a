"""Mixed precision: how sensitive each module is to quantization, how many bits it gets, and what that does.

``sensitivity`` measures, ``allocate`` decides, ``convert`` writes; ``evaluate`` compares the result with its source.
"""
