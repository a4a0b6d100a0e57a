"""``python -m optiq_core.quant``: `optiq convert`, for processes that want the conversion's memory to be elsewhere."""

from optiq_core.quant.cli import convert

if __name__ == "__main__":
    convert()
