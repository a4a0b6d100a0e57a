"""Compressed KV caches: affine, rotated affine and TurboQuant, per layer, alone or in batches."""
