"""The agent's side of the trainer: starting it when there is work, watching it, ending it when it is idle, slow, greedy or dead.

Model: at most one child, at most one job at a time. `poll` gives the answer of the running job when there is one; a child that
died, stands still or took too much gives an answer too, written by us. The child's output is a file descriptor that the agent's
own wait includes, so that nothing polls. What the child and its libraries complain about goes to the agent's standard error.

Rule: nothing here waits for the child: a job fits the pipe as a whole, and answers are read as far as they are there.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from edgefl.device.job import AGENT_VARIABLE, Answer, Done, Failed, Job, TrialJob, Verdict, decode_answer, encode_line
from edgefl.device.resources import cpu_seconds, resident

IDLE_SECONDS = 60.0
"""An idle trainer is ended after this time: its memory is worth more to the board than its warm start to us."""
JOB_SECONDS = 6 * 3600.0
STILL_SECONDS = 300.0
"""A trainer that has used no processor time for so long will not come back: ONNX Runtime waits for ever if a thread of its pool
cannot start."""
FRUGAL = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""One thread is enough for what numpy does there, and each further one reserves memory. Vectors in mappings of their own go
back to the system when they are let go of, instead of leaving holes in glibc's heap: a tenth of the process, for no measurable
time."""
LONGEST_JOB = 1 << 20
"""Bytes of a job, and what an unprivileged pipe may hold on Linux."""
LONGEST_ANSWER = 1 << 16
REAP_SECONDS = 5.0


class TrainerProcess:
    """Handle of the trainer child.

    Args:
        threads: intra-operator threads of ONNX Runtime.
        memory_mb: resident memory of the child above which it is ended; looked at whenever the agent polls.
        clock: monotonic seconds.
    """

    def __init__(self, threads: int, memory_mb: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._command = [sys.executable, "-m", "edgefl.device.trainer", str(threads)]
        self._memory = memory_mb * 1024 * 1024
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._job: Job | TrialJob | None = None
        self._since = 0.0
        self._cpu = (0.0, 0.0)  # seconds the child has used, and when that was new
        self._line = b""
        self._trouble = ""
        self.peak_rss = 0
        """Largest peak of any child so far, in bytes."""

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    @property
    def cpu(self) -> float:
        """Processor seconds that the child had used when they last became more."""
        return self._cpu[0]

    @property
    def wake(self) -> tuple[int, ...]:
        """File descriptors that become readable when there may be an answer."""
        return (self._child.stdout.fileno(),) if self._job and self._child and self._child.stdout else ()

    def start(self, job: Job | TrialJob) -> None:
        """Give the child a job, starting one if there is none. The caller has seen that it is not busy."""
        now = self._clock()
        self._job, self._since, self._cpu, self._trouble = job, now, (0.0, now), ""
        try:
            if self._child is None or self._child.poll() is not None:
                self.kill()
                self._spawn()
            with contextlib.suppress(BrokenPipeError):  # it has died: poll finds the end of its output and says how
                self._hand_over(encode_line(job))
        except OSError as error:
            self._trouble = str(error)
            self.kill()  # poll will find no child and answer for it

    def poll(self) -> Answer | None:
        """The answer of the running job, if it has ended in whatever way."""
        job = self._job
        if job is None:
            if self._child and self._clock() - self._since > IDLE_SECONDS:
                self.kill()
            return None
        answer = self._read(job) or self._overdrawn(job)
        if isinstance(answer, Verdict):
            answer = self._within_bounds(job, answer)
        if answer is not None:
            self._job, self._since, self._line = None, self._clock(), b""
            self.peak_rss = max(self.peak_rss, answer.peak_rss)
        return answer

    def kill(self) -> None:
        """End the child at once; it hands back whole files or none."""
        child, self._child, self._line = self._child, None, b""
        if child is not None:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel with a broken disk
                child.wait(REAP_SECONDS)
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()

    def cancel(self) -> None:
        """Forget the running job; the child is ended."""
        self.kill()
        self._job = None

    def _spawn(self) -> None:
        environment = {**os.environ, **FRUGAL, AGENT_VARIABLE: str(os.getpid())}
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)
        for stream in (self._child.stdin, self._child.stdout):
            if stream:
                os.set_blocking(stream.fileno(), False)
                if stream is self._child.stdin:
                    fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, LONGEST_JOB)

    def _hand_over(self, line: bytes) -> None:
        stream = self._child.stdin if self._child else None
        if stream is None or stream.write(line) != len(line):
            raise OSError(f"a job of {len(line)} bytes does not fit the pipe")

    def _read(self, job: Job | TrialJob) -> Answer | None:
        child = self._child
        if child is None or child.stdout is None:
            return _failed(job, "crash", f"the trainer process could not be started: {self._trouble or 'it is gone'}")
        chunk = child.stdout.read(LONGEST_ANSWER)
        self._line += chunk or b""
        if self._line.endswith(b"\n") or len(self._line) > LONGEST_ANSWER:
            return self._decoded(job)
        if chunk is None or chunk:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(REAP_SECONDS)  # its output has ended, so it is ending
        self.kill()
        return _failed(job, "crash", f"the trainer process died ({_cause(child.returncode)}); the log says more")

    def _decoded(self, job: Job | TrialJob) -> Answer:
        try:
            answer = decode_answer(self._line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.kill()
            return _failed(job, "crash", f"the trainer answered nonsense: {error}")
        if _belongs(answer, job):
            return answer
        self.kill()
        return _failed(job, "crash", f"the trainer answered nonsense: {_place(answer)} instead of {_place(job)}")

    def _within_bounds(self, job: Job | TrialJob, verdict: Verdict) -> Answer:
        """The verdict, unless a trial that has passed took more than it may, too quickly to be seen at it."""
        if verdict.code or not isinstance(job, TrialJob):
            return verdict
        if verdict.seconds > job.health.seconds:
            return _failed(
                job, "time", f"the trial took {verdict.seconds:.3g} s, more than {job.health.seconds:g} s", verdict.peak_rss
            )
        if verdict.peak_rss <= self._memory:
            return verdict
        reason = f"the trial needed {verdict.peak_rss >> 20} MiB, this device's profile allows {self._memory >> 20} MiB"
        return _failed(job, "memory", reason, verdict.peak_rss)

    def _overdrawn(self, job: Job | TrialJob) -> Answer | None:
        """Ends a child that has taken more time or memory than it may, or does nothing."""
        now, pid = self._clock(), self._child.pid if self._child else 0
        used, cpu = resident(pid), cpu_seconds(pid)
        if cpu != self._cpu[0]:
            self._cpu = (cpu, now)
        what, limit = ("the trial", job.health.seconds) if isinstance(job, TrialJob) else ("training", JOB_SECONDS)
        code = "time"
        if used > self._memory:
            code = "memory"
            reason = (
                f"{what} needs more memory than this device's profile allows: expected at most {self._memory >> 20} MiB, "
                f"found {used >> 20} MiB. Push a narrower variant, or use fewer examples"
            )
        elif now - self._since > limit:
            reason = (
                f"{what} took longer than {limit / 3600:g} hours" if limit >= 3600 else f"{what} took longer than {limit:g} s"
            )
        elif now - self._cpu[1] > STILL_SECONDS:
            reason = f"the trainer process stood still for {STILL_SECONDS:.0f} seconds"
        else:
            return None
        self.kill()
        return _failed(job, code, reason, used)


def _failed(job: Job | TrialJob, code: str, reason: str, peak_rss: int = 0) -> Answer:
    if isinstance(job, TrialJob):
        code = "trial-deadline" if code == "time" else f"trial-{code}"
        return Verdict(version=job.candidate.version, code=code, reason=reason, peak_rss=peak_rss)
    return Failed(round=job.round, reason=reason, fault="machine", peak_rss=peak_rss, code=code)


def _belongs(answer: Answer, job: Job | TrialJob) -> bool:
    return isinstance(answer, Verdict) == isinstance(job, TrialJob) and _place(answer) == _place(job)


def _place(one: Job | TrialJob | Answer) -> str:
    """Which round or trial a job or an answer is about."""
    match one:
        case Job() | Done() | Failed():
            return f"round {one.round}"
        case Verdict():
            return f"trial of version {one.version}"
        case TrialJob():
            return f"trial of version {one.candidate.version}"


def _cause(code: int | None) -> str:
    if code is None:
        return "no exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    return f"{name}, probably out of memory" if name in ("SIGKILL", "SIGABRT", "SIGSEGV") else name
