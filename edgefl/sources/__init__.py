"""Where a device's examples come from. A source is named by a line of text; `parse.open_source` understands it.

* `idx`: the files of MNIST and its relatives.
* `npz`: numpy archives, optionally one client's part.
* `windows`: windows of a recording of several people.
* `digits`: scikit-learn's digits, for demonstrations.
* `split`: cutting one data set into clients, for simulations; `clients`: whose each example is.
"""
