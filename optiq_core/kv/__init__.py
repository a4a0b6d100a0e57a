"""Compressed KV caches: affine, rotated affine and TurboQuant, per layer, alone or in batches.

The default is float. Where memory decides, take ``turboquant:4``: on the embedded model it takes 6,120 bytes a token
(float32 46,080; rotated and plain affine 4-bit with float32 scales 7,200), and over a context of 1,536 tokens its
perplexity was 1.058 times float's, against 1.076 (``rotated:4``) and 1.170 (``affine:4``); KL 0.057, 0.051 and 0.121.
``rotated:4`` keeps mlx's own fused quantized product, which has run on Metal and CUDA where our kernels have not.
"""
