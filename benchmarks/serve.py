"""The server under load: 200 callers at once, against the same server without batching and a plain transformers loop.

    OMP_NUM_THREADS=1 python benchmarks/serve.py --run runs/quickstart

Every caller has its own connection and asks one question after another; rounds of the three sides alternate. Answers
under load are compared with those of a predictor that is asked one question at a time. All traffic stays on this
machine, and every loop ends by itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine, quiet, ratios

from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.serving.predictor import Predictor

ROOT = Path(__file__).parents[1]


class Server:
    """A server in a process of its own."""

    def __init__(self, run: Path, *more: str) -> None:
        command = [sys.executable, "cli.py", "serve", "--run", str(run), "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stderr is not None
        line = next(line for line in self.process.stderr if line.startswith("serving "))
        self.port = int(line.rsplit(":", 1)[1])

    def load(self, questions: list[dict[str, Any]], callers: int) -> tuple[float, list[float], list[Any]]:
        """Seconds in all, seconds of each request, and the answers; question i is asked by caller i modulo callers."""
        found: list[Any] = [None] * len(questions)
        waited = [0.0] * len(questions)

        def caller(first: int) -> None:
            """Ask every so many-th question, and note how long each answer took."""
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            for place in range(first, len(questions), callers):
                began = time.perf_counter()
                body = json.dumps({"questions": [questions[place]]})
                connection.request("POST", "/predict", body, {"content-type": "application/json"})
                response = connection.getresponse()
                content = json.loads(response.read())
                waited[place] = time.perf_counter() - began
                found[place] = content["answers"][0] if response.status == 200 else response.status
            connection.close()

        threads = [threading.Thread(target=caller, args=(first,)) for first in range(callers)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began, waited, found


def main() -> None:
    """Run the script: see its first lines."""
    options = arguments()
    quiet()
    print(machine())
    data = SyntheticDataModule(max_test=options.questions, ood=[])
    asked = data.questions("synthetic")
    given = [{"id": q.id, "question": q.question, "context": q.context, "options": list(q.options)} for q in asked]
    predictor = Predictor.from_run(options.run, "cpu")
    wanted = [predictor(question) for question in asked]
    servers = {"batched": Server(options.run), "one by one": Server(options.run, "--batch-size", "1")}
    seconds: dict[str, list[float]] = {name: [] for name in (*servers, "loop")}
    try:
        for _ in range(options.rounds):
            for name, server in servers.items():
                took, waited, found = server.load(given, options.callers)
                seconds[name].append(took)
                lost = [one for one in found if not isinstance(one, dict)]
                worst = max(abs(p - q) for one, own in zip(found, wanted, strict=True) if isinstance(one, dict)
                            for p, q in zip(one["probs"], own.probs, strict=True))  # fmt: skip
                print(
                    f"  {name}: {len(found) / took:.0f} questions a second, median "
                    f"{1000 * statistics.median(waited):.0f} ms, lost {len(lost)}, "
                    f"largest difference of a probability {worst:.1e}",
                    flush=True,
                )
            seconds["loop"].append(loop(predictor, asked))
            print(f"  loop: {len(asked) / seconds['loop'][-1]:.0f} questions a second", flush=True)
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait(30)
    print(ratios("seconds, one by one / batched", seconds["one by one"], seconds["batched"]))
    print(ratios("seconds, a plain loop in one process / batched", seconds["loop"], seconds["batched"]))


def loop(predictor: Predictor, asked: list[Any]) -> float:
    """Seconds of the plain way: the network itself, one question at a time, without a server."""
    network, tokenizer = predictor.module.model.network, predictor.tokenizer
    encoder = predictor.prompting.encoder(tokenizer)
    began = time.perf_counter()
    with torch.no_grad():
        for question in asked:
            (encoded,) = encoder.encode([question])
            logits = network(torch.tensor([encoded.rows[0]])).logits[0, -1]
            logits[list(encoded.answers)].softmax(-1).tolist()
    return time.perf_counter() - began


def arguments() -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run on the embedded base that was tested")
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
