"""The update codec: sparsify, quantise, entropy-code; pure functions on flat float32 vectors.

* `sparsify`: which coordinates are sent, the k largest.
* `values`: how they are sent, sign and a few bits of magnitude.
* `positions`: where they are, as Golomb-coded gaps or Huffman-coded blocks of the bitmap.
* `bits`: fixed-width codes, packed.
* `update`: all of it as one file format (docs/update-format.md).
* `weights`: a variant's weights as a file, fp32, fp16 or int8.
"""
