"""The server of the task as a Flower ServerApp: FedAvg as shipped, with all devices in each round and evaluation on the server.

It writes a line of JSON before the first round and after each: `{"round", "time", "accuracy"}`, time in seconds since 1970.
"""

import json
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from uplink.perceptron import Task, accuracy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds once all devices are there."""
    task = Task(Path(str(context.run_config["task"])))
    out = Path(str(context.run_config["out"]))
    test = task.test()

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        reached = accuracy({name: array.numpy() for name, array in arrays.items()}, test)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, "time": time.time(), "accuracy": reached}) + "\n")
        return MetricRecord({"accuracy": reached})

    while len(list(grid.get_node_ids())) < task.devices:
        time.sleep(0.5)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=task.devices, min_available_nodes=task.devices)
    start = ArrayRecord({name: Array.from_numpy_ndarray(value) for name, value in task.start().items()})
    strategy.start(grid, start, num_rounds=task.rounds, evaluate_fn=evaluate)
