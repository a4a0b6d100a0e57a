"""Compressed KV caches: affine, rotated affine and TurboQuant, per layer, alone or in batches.

The default is float. Where memory decides, take ``turboquant:4``: on the embedded model it takes 6,120 bytes a token
(float32 46,080; rotated and plain affine 4-bit with float32 scales 7,200) and 1.57 MB a row for the first four and the
last 64 tokens, which it keeps as they came. Over a context of 1,536 tokens its KL from float was 0.0017 and its
perplexity 1.0006 times float's; affine 4-bit, without such tokens, had 0.121 and 1.170.
``rotated:4`` keeps mlx's own fused quantized product, which has run on Metal and CUDA where our kernels have not.
"""
