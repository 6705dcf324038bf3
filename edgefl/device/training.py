"""The agent's side of the trainer: starting it when there is work, watching it, ending it when it is idle, slow or dead.

Model: at most one child, at most one job at a time. `poll` gives the answer of the running job when there is one; a child that
died or took too long gives an answer too, written by us. The child's output is a file descriptor that the agent's own wait
includes, so that nothing polls.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgefl.device.job import Answer, Failed, Job, decode_answer, encode_line

IDLE_SECONDS = 60.0
"""An idle trainer is ended after this time: its memory is worth more to the board than its warm start to us."""
JOB_SECONDS = 6 * 3600.0


class TrainerProcess:
    """Handle of the trainer child.

    Args:
        threads: intra-operator threads of ONNX Runtime.
        memory_mb: limit of the child's writable memory.
        log: file that takes the child's standard error.
        clock: monotonic seconds.
    """

    def __init__(self, threads: int, memory_mb: int, log: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._command = [sys.executable, "-m", "edgefl.device.trainer", str(threads), str(memory_mb)]
        self._log = log
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._job: Job | None = None
        self._since = 0.0
        self._line = b""
        self.peak_rss = 0
        """Largest peak of any child so far, in bytes."""

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    @property
    def wake(self) -> tuple[int, ...]:
        """File descriptors that become readable when there may be an answer."""
        return (self._child.stdout.fileno(),) if self._job and self._child and self._child.stdout else ()

    def start(self, job: Job) -> None:
        """Give the child a job, starting one if there is none. The caller has seen that it is not busy."""
        self._job, self._since = job, self._clock()
        try:
            child = self._child or self._spawn()
            if child.stdin is None:
                return
            child.stdin.write(encode_line(job))
            child.stdin.flush()
        except OSError:
            self.kill()  # poll will find no child and answer for it

    def poll(self) -> Answer | None:
        """The answer of the running job, if it has ended in whatever way."""
        job = self._job
        if job is None:
            if self._child and self._clock() - self._since > IDLE_SECONDS:
                self.kill()
            return None
        answer = self._read(job)
        if answer is None and self._clock() - self._since > JOB_SECONDS:
            self.kill()
            answer = Failed(round=job.round, reason="training took longer than six hours", fault="machine", peak_rss=0)
        if answer is not None:
            self._job, self._since, self._line = None, self._clock(), b""
            self.peak_rss = max(self.peak_rss, answer.peak_rss)
        return answer

    def kill(self) -> None:
        """End the child at once; it hands back whole files or none."""
        child, self._child, self._line = self._child, None, b""
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()

    def cancel(self) -> None:
        """Forget the running job."""
        self.kill()
        self._job = None

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0)
        if self._child.stdout:
            os.set_blocking(self._child.stdout.fileno(), False)
        return self._child

    def _read(self, job: Job) -> Answer | None:
        child = self._child
        if child is None or child.stdout is None:
            return Failed(round=job.round, reason="the trainer process could not be started", fault="machine", peak_rss=0)
        while chunk := child.stdout.read(65536):
            self._line += chunk
        if self._line.endswith(b"\n"):
            return self._decode(job)
        if chunk is None or child.poll() is None:
            return None
        reason = f"the trainer process died ({_cause(child.returncode)}); see {self._log}"
        self.kill()
        return Failed(round=job.round, reason=reason, fault="machine", peak_rss=0)

    def _decode(self, job: Job) -> Answer:
        try:
            return decode_answer(self._line)
        except msgspec.MsgspecError as error:
            self.kill()
            return Failed(round=job.round, reason=f"the trainer answered nonsense: {error}", fault="edgefl", peak_rss=0)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, probably out of memory" if name in ("SIGKILL", "SIGABRT", "SIGSEGV") else name
