"""What an ONNX file declares, read without the onnx package: its operators and the names and shapes of its inputs.

Model: an ONNX file is a protocol buffer (https://protobuf.dev/programming-guides/encoding/): a message is a sequence of
(field number, wire type, value). Only five messages matter here, with the field numbers of onnx.proto: ModelProto.graph = 7,
functions = 25; GraphProto.node = 1, initializer = 5, input = 11, sparse_initializer = 15; NodeProto.op_type = 4, attribute = 5,
domain = 7; AttributeProto.t = 5, g = 6, tensors = 10, graphs = 11; TensorProto.external_data = 13; ValueInfoProto.name = 1.

Rules: the walk never recurses, never reads beyond a message's length, and copies nothing but names. A graph with sub-graphs,
functions, tensors in other files, or an operator that is not on the list is refused before ONNX Runtime sees it: nothing that
is loaded may read files, call out, or run code of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefl.errors import EngineError

MAX_BYTES = 64 * 1024 * 1024

STANDARD = frozenset(
    (  # noqa: SIM905  a name per line would be pages
        "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape Conv "
        "ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand "
        "Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual "
        "GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu Less "
        "LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool MaxUnpool Mean Min Mish Mod Mul Neg Not OneHot Or PRelu "
        "Pad Pow QLinearConv QLinearMatMul QuantizeLinear Range Reciprocal ReduceL2 ReduceLogSumExp ReduceMax ReduceMean "
        "ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid "
        "Sign Sin Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh "
        "Tile TopK Transpose Trilu Unsqueeze Where Xor"
    ).split()
)
"""Operators of the ONNX standard that compute on tensors; none has a sub-graph, a random number or a file."""

TRAINING = frozenset(
    (  # noqa: SIM905  a name per line would be pages
        "AdamWOptimizer BiasFastGeluGrad_dX BiasGeluGrad_dX BiasSoftmax ConcatTraining ConvGrad ConvTransposeGrad DivGrad "
        "FastGelu FastGeluGrad FusedConv FusedGemm FusedMatMul GatherElementsGrad GatherGrad GatherNDGrad Gelu GeluGrad "
        "InPlaceAccumulatorV2 LayerNormalizationGrad LeakyReluGrad LogSoftmaxGrad LogSoftmaxGrad_13 MaxPoolGrad MinMaxGrad "
        "PadAndUnflatten QuickGelu QuickGeluGrad ReduceAllL2 ReduceSumTraining ReluGrad SGDOptimizerV2 Scale SequenceAt "
        "SequenceConstruct "
        "SigmoidGrad SimplifiedLayerNormalization SimplifiedLayerNormalizationGrad SliceGrad SoftmaxCrossEntropyLossGrad "
        "SoftmaxCrossEntropyLossInternal SoftmaxCrossEntropyLossInternalGrad SoftmaxGrad SoftmaxGrad_13 SplitTraining TanhGrad"
    ).split()
)
"""Operators that onnxruntime-training adds for gradients and optimisers; domain `com.microsoft`, some registered as standard.

AveragePoolGrad is left out: its kernel in 1.19.2 divides by zero and takes the process down."""

Message = memoryview


@dataclass(frozen=True, slots=True)
class GraphFile:
    """What was read: the file's name, `(domain, operator)` of all nodes, and the inputs' names in order."""

    name: str
    operators: frozenset[tuple[str, str]]
    inputs: tuple[str, ...]


def read_graph(path: Path) -> GraphFile:
    """Read a graph file.

    Raises:
        EngineError: it is missing, too large, or no ONNX file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EngineError(
                f"graph {path.name} is too large", expected=f"at most {MAX_BYTES} bytes", found=f"{path.stat().st_size}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"graph {path.name} cannot be read", found=str(error), remedy="Let the device fetch the model again"
        ) from error
    return parse_graph(path.name, data)


def parse_graph(name: str, data: bytes) -> GraphFile:
    """Read a graph from a file's content; `name` is for errors.

    Raises:
        EngineError: it is no ONNX file.
    """
    try:
        parts = list(_messages(memoryview(data)))
        graphs = [value for number, value in parts if number == 7]
        if len(graphs) != 1 or any(number == 25 for number, _ in parts):
            raise ValueError("not exactly one graph, or functions")
        operators = frozenset(_operators(graphs[0]))
        inputs = tuple(_text(value, 1) for number, value in _messages(graphs[0]) if number == 11)
    except (ValueError, IndexError) as error:
        raise EngineError(
            f"graph {name} is damaged",
            expected="an ONNX file",
            found=str(error),
            remedy="Let the device fetch the model again",
        ) from None
    return GraphFile(name, operators, inputs)


def check_graph(graph: GraphFile, *, training: bool = False) -> GraphFile:
    """The same graph, if all its operators are on the list.

    Args:
        graph: what was read.
        training: whether onnxruntime-training's gradient operators are allowed too.

    Raises:
        EngineError: one is not; the text names it.
    """
    for domain, operator in sorted(graph.operators):
        standard = domain in {"", "ai.onnx"} and operator in STANDARD
        if not (standard or (training and domain in {"", "ai.onnx", "com.microsoft"} and operator in TRAINING)):
            raise EngineError(
                f"graph {graph.name} uses an operator that is not allowed",
                expected="operators of the list in edgefl.engine.graphfile",
                found=".".join(filter(None, (domain, operator))) or "one without a name",
                remedy="Push the model again with this edgefl's server",
            )
    return graph


def _operators(graph: Message) -> Iterator[tuple[str, str]]:
    for number, part in _messages(graph):
        if number == 15:
            raise ValueError("sparse initializers")
        if number == 5:
            _check_tensor(part)
        if number == 1:
            for attribute_number, attribute in _messages(part):
                if attribute_number == 5:
                    _check_attribute(attribute)
            yield _text(part, 7), _text(part, 4)


def _check_attribute(attribute: Message) -> None:
    for number, value in _messages(attribute):
        if number in {6, 11}:
            raise ValueError("a node with a sub-graph")
        if number in {5, 10}:
            _check_tensor(value)


def _check_tensor(tensor: Message) -> None:
    if any(number == 13 for number, _ in _messages(tensor)):
        raise ValueError("a tensor in another file")


def _messages(message: Message) -> Iterator[tuple[int, Message]]:
    """The length-delimited fields of a message."""
    return ((number, value) for number, value in _fields(message) if isinstance(value, Message))


def _text(message: Message, wanted: int) -> str:
    found = b""
    for number, value in _messages(message):
        if number == wanted:
            found = bytes(value[:300])
    return found.decode()


def _fields(message: Message) -> Iterator[tuple[int, Message | int]]:
    """Field numbers and values of one message; length-delimited values are views, not copies."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in {1, 5}:
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if length > len(message) - place:
            raise ValueError("a field reaches beyond its message")
        yield number, message[place : place + length]
        place += length


def _varint(message: Message, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("an integer without end")
