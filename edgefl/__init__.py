"""edgefl: federated learning on edge devices, from the torch model to the board and back.

The packages stand on floors and import downwards only (tests/test_floors.py holds the table and enforces it):

    0 values       errors, profile, layout, plan, examples
    1 mathematics  codec, aggregate, compress
    2 wire         wire (messages, topics, blocks)
    3 machines     device.session, device.download, server.rounds, server.delivery
    4 adapters     link, store, engine, export, sources, identity, brokers
    5 shells       device.agent, device.trainer, server.service, server.push
    6 commands     cli, demo
"""

__version__ = "0.1.0"
