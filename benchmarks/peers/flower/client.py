"""The device of the task as a Flower ClientApp: arrays come in, are trained on the device's shard, and go back as they are."""

from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from uplink.perceptron import Task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a training message of the strategy."""
    task = Task(Path(str(context.run_config["task"])))
    device = int(context.node_config["device"])
    start = {name: array.numpy() for name, array in message.content["arrays"].items()}
    number = int(message.content["config"]["server-round"])
    trained = task.trained(start, device, number)
    arrays = ArrayRecord({name: Array.from_numpy_ndarray(value) for name, value in trained.items()})
    metrics = MetricRecord({"num-examples": len(task.shard(device)[1])})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
