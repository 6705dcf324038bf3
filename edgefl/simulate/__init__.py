"""Federated learning with thousands of virtual devices on one machine: the live system's parts without broker and clock.

Model: an `Experiment` says everything; `run.simulate` plays it and gives a `Result`. The server's side (selection, aggregation,
downlink, evaluation) runs in the calling process. The devices' side (training, update codec) runs in `Workers`: processes of
which each owns one engine and plays the devices that it is told to, one after the other. What a device keeps between its rounds
lies in files, so that memory does not grow with the number of devices.

* `experiment`: what is simulated; `presets`: ready ones; `setting`, `scene`: its data and graphs, ready for the workers.
* `jobs`, `host`: what a worker is asked and how it plays a device; `attacks`: what devices may do wrong.
* `workers`: the pool's Protocol; `processes`, `worker`, `shelf`: on local processes; `cluster`: on Ray.
* `fleet`, `schedule`: who takes part, and when updates arrive; `server`, `downlink`, `histories`, `past`: what is made of them.
* `traffic`, `ledger`: what it costs; `fairness`, `result`, `plots`: what came of it; `run`: all of it together.

Rule: the result is a function of the experiment, to the last bit, whatever the number of workers.
"""
