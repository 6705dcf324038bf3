"""What the tests of the agent share: a board with a scripted engine, and one round of it.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

from contextlib import contextmanager

import toyboard as toy
from edgefl.device import hands
from toytrainer import InlineTrainer, ScriptedEngine


def trainer(board):
    """The inline trainer of the present start."""
    return board.agent._hands.trainings._trainer


def trained(board, number):
    """Announce a round and run until its update has arrived and is settled."""
    board.office.order(number)
    return board.run(lambda: board.office.updates[number] and board.session.work is None)


@contextmanager
def scripted(root, monkeypatch, process=InlineTrainer):
    """A board that has never heard of any model, with a scripted engine, and this in place of the trainer process."""
    monkeypatch.setattr(hands, "TrainerProcess", process)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)
    board = toy.Board(root)
    try:
        yield board
    finally:
        if board.agent:
            board.agent._hands.close()
