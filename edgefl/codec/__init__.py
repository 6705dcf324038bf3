"""The codec: pure functions on flat float32 vectors, and the files that they become (docs/update-format.md).

An update, from a device to the server:

* `scheme`: how it is coded, as the plan says. `compress`: the device's side of it, from delta to file and memory.
* `selection`, `sparsify`: which coordinates are sent; `pricing`: by what they bring for their bits.
* `values`: how they are sent, sign and a few bits of magnitude.
* `subsets`: k of n as bits, the coder under everything.
* `plain`, `positions`: the file that stands for itself.
* `contextual`: the file that is coded against the model's past. `history`: that past; `grid`: rows, columns and stages;
  `classes`: which coordinates are equally likely; `fitting`: how the encoder finds out.
* `rotated`: the dense file. `hadamard`: the rotation; `centroids`: its levels.
* `update`: any of these files, read.

From the server to the devices:

* `weights`: a variant's weights as a file, fp32, fp16 or int8.
* `advance`: what devices are to hold next. `moves`: how floats get there, to the last bit.
* `difference`, `integers`: what turns one weights file into another.
"""
