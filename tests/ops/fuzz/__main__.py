"""Fuzzes the operators: random cases, each from a seed of its own, in a process that may die without ending the rest.

A case is wrong where an output or a gradient has twice the error of plain torch in the same dtype, another shape, dtype
or memory format than it should, NaN, where an input is written to, where the process dies or an error is raised that is
not the one expected. ``--seed S --cases 1`` runs the case of a failure again.
"""

import argparse
import faulthandler
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback

SECONDS = 300
"""How long one case may take."""
MEMORY = 6 << 30
"""How much address space a child may have; all that it takes beyond is a fault. The sanitizers take far more."""


def main():
    """Run the cases; 1 where one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the first case, the next ones' follow; default: 0")
    parser.add_argument("--operator", help="only this one; default: all")
    isas = ["avx512_bf16", "avx512", "avx2", "baseline"]
    parser.add_argument("--isa", choices=isas, help="default: the best of this machine")
    parser.add_argument("--seconds", type=float, help="stop after as many")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    environment = dict(os.environ, OMP_WAIT_POLICY="passive", OMP_DYNAMIC="false")
    if options.isa:
        environment["CONVATTN_CPU_ISA"] = options.isa
    return parent(options, environment)


def parent(options, environment):
    """Start children until all seeds have had their turn."""
    begun, seed, end, failed = time.monotonic(), options.seed, options.seed + options.cases, 0
    isa = "?"
    while seed < end and not (options.seconds and time.monotonic() - begun > options.seconds):
        run = Child(seed, end, options.operator, environment)
        for answer in run.answers(options.seconds and begun + options.seconds):
            if "isa" in answer:
                isa = answer["isa"]
            elif answer["wrong"]:
                failed += 1
                print(f"seed {seed} {answer['operator']}: {answer['wrong']}\n    {answer['case']}", flush=True)
            seed += "wrong" in answer
        if run.died:
            failed += 1
            print(f"seed {seed} {run.case}: {run.died}", flush=True)
            seed += 1
    done = seed - options.seed
    guarded = ", guarded" if environment.get("CONVATTN_GUARD") else ""
    print(f"{done} cases, {failed} wrong, {time.monotonic() - begun:.0f} s, {isa}{guarded}", flush=True)
    return int(failed > 0)


class Child:
    """A process that runs cases one after the other and says before each which comes."""

    def __init__(self, seed, end, operator, environment):
        command = [sys.executable, "-m", "tests.ops.fuzz", "--child", "--seed", str(seed), "--cases", str(end - seed)]
        command += ["--operator", operator] if operator else []
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed with the object
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self.errors)
        self.case, self.died = "before its first case", ""

    def answers(self, until):
        """What it says, until it ends; then ``died`` says how, if it was in the middle of a case."""
        rest, running = b"", True
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            text = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not text:
                break
            *lines, rest = (rest + text).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                running = "next" in answer
                if running:
                    self.case = answer["next"]
                else:
                    yield answer
                if not running and until and time.monotonic() > until:
                    self.stop()
                    return
        hung = self.process.poll() is None and not ready
        self.stop() if hung else self.process.wait()
        if hung or self.process.returncode:
            self.died = f"no end after {SECONDS} s" if hung else self.how_it_ended()

    def stop(self):
        """End it."""
        self.process.kill()
        self.process.wait()

    def how_it_ended(self):
        """Signal or exit code, and the line of its last words that says most."""
        code = self.process.returncode
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()] or [""]
        words = ("ERROR", "runtime error", "guarded scratch", "Fatal Python error")
        telling = [line for line in lines if any(word in line for word in words)][:2] or lines[-1:]
        frames = [line for line in lines if line.startswith("#") and "csrc" in line][:2]
        frames = frames or [line for line in lines if line.startswith("File") and "convattn/ops/" in line][:2]
        return " | ".join([signal.Signals(-code).name if code < 0 else f"exit {code}", *telling, *frames])


def child(options):
    """Run cases, one line of JSON before and after each."""
    answers = os.fdopen(os.dup(1), "w")  # whatever else is printed goes elsewhere
    os.dup2(2, 1)

    def say(**answer):
        print(json.dumps(answer), file=answers, flush=True)

    faulthandler.enable(sys.__stderr__)
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch

    from convattn.ops import _native
    from tests.ops.fuzz.check import check, draw_case

    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    reasons = _native.reasons()
    say(isa=f"no kernels: {reasons[0]}" if reasons else _native.instruction_set())
    guard = None
    if os.environ.get("CONVATTN_GUARD"):
        from tests.ops.guarded import Guard

        guard = Guard()
        guard.install()
    for seed in range(options.seed, options.seed + options.cases):
        case = draw_case(seed, options.operator)
        say(next=f"{case.operator}: {case}")
        if guard:
            guard.side = "behind" if seed % 2 else "before"
        try:
            wrong, _ = check(seed, options.operator)
        except Exception:
            wrong = traceback.format_exc()
        say(wrong=wrong, operator=case.operator, case=str(case))
    return 0


if __name__ == "__main__":
    sys.exit(main())
