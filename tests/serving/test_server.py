"""The server: answers are the predictor's own, refusals are one line, and no death of it leaves anything behind."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bayeslora.errors import UsageError
from bayeslora.serving.batcher import Batcher, BusyError
from bayeslora.serving.predictor import Predictor

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

QUESTION = {"question": "Is 4 even?", "options": ["yes", "no"]}


class Served:
    """A server in a process of its own."""

    def __init__(self, run: Path, port: int = 0, *more: str) -> None:
        command = [sys.executable, "cli.py", "serve", "--run", str(run), "--port", str(port), "--device", "cpu", *more]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=Path(__file__).parents[2]
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if line.startswith("serving "):
                break
        else:
            raise AssertionError("".join(said))
        self.port = int(said[-1].rsplit(":", 1)[1])
        self._rest = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._rest.start()

    def ask(self, body: bytes | str | dict, path: str = "/predict", method: str = "POST") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, content, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        kind = response.getheader("content-type") or ""
        return response.status, json.loads(text) if "json" in kind else text

    def predict(self, *questions: dict) -> tuple[int, Any]:
        return self.ask({"questions": list(questions)})

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def served(own: tuple[Path, list[dict]]) -> Iterator[Served]:
    server = Served(own[0])
    yield server
    server.end()


def test_answers_are_the_predictors_alone_and_under_load(served: Served, own: tuple[Path, list[dict]]) -> None:
    questions = [{"question": line["question"], "options": line["options"], "id": line["id"]} for line in own[1]]
    wanted = [answer.to_dict() for answer in Predictor.from_run(own[0], "cpu")(questions)]

    def one(place: int) -> dict:
        status, found = served.predict(questions[place % 10])
        assert status == 200, found
        return found["answers"][0]

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(one, range(64)))
    for place, answer in enumerate(found):
        own_answer = wanted[place % 10]
        assert answer["probs"] == pytest.approx(own_answer["probs"], abs=1e-6)
        assert {k: answer[k] for k in ("id", "options", "choice", "abstain", "prediction_set")} == json.loads(
            json.dumps({k: own_answer[k] for k in ("id", "options", "choice", "abstain", "prediction_set")})
        )


def test_what_is_refused_is_refused_in_one_line(served: Served) -> None:
    def refused(status: int, body: bytes | str | dict, *parts: str) -> None:
        found, answer = served.ask(body)
        assert (found, list(answer)) == (status, ["error"]), answer
        assert "\n" not in answer["error"]
        assert all(part in answer["error"] for part in parts), answer

    refused(400, "no json", "JSON")
    refused(400, b"\xff\xfe")
    refused(400, "[" * 3000)
    refused(422, {"questions": []}, "at least 1 item")
    refused(422, {"asked": 1})
    refused(422, {"questions": [{"question": "?", "options": ["a"]}]}, "questions.0.options")
    refused(422, {"questions": [{"question": "?", "options": ["a", "a"]}]}, "same option twice")
    refused(422, {"questions": [{"question": "?", "options": [str(i) for i in range(10_000)]}]}, "at most 256")
    refused(422, {"questions": [{"question": "?", "options": [str(i) for i in range(100)]}]}, "letters")
    refused(422, {"questions": [{"question": "x" * 20_001, "options": ["a", "b"]}]}, "at most 20000")
    refused(422, {"questions": [QUESTION] * 65}, "at most 64")
    refused(422, '{"questions": [{"question": "\\ud800", "options": ["a", "b"]}]}')
    refused(422, '{"questions": [{"question": NaN, "options": ["a", "b"]}]}')
    refused(422, {"questions": [{**QUESTION, "path": "/etc/passwd"}]}, "questions.0.path")
    refused(413, b" " * (1 << 21), "1048576 bytes")
    assert served.ask("", "/nowhere", "GET")[0] == 404
    assert served.ask("", "/predict", "GET")[0] == 405
    assert served.predict(QUESTION)[0] == 200


def test_pages_and_descriptions_need_nothing_from_elsewhere(served: Served) -> None:
    status, health = served.ask("", "/health", "GET")
    assert (status, health["status"], health["decides"], health["options"]) == (200, "ok", True, ["yes", "no"])
    status, described = served.ask("", "/openapi.json", "GET")
    assert status == 200
    assert set(described["paths"]) == {"/predict", "/health"}
    for path in ("/", "/docs"):
        status, page = served.ask("", path, "GET")
        assert status == 200
        assert "http://" not in page
        assert "https://" not in page


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_ended_under_load_leaves_its_port(own: tuple[Path, list[dict]], by: signal.Signals) -> None:
    server = Served(own[0])
    outcomes: list[int | str] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                outcomes.append(server.predict(QUESTION)[0])
            except (OSError, http.client.HTTPException):  # nobody listens any longer
                outcomes.append("gone")
                return

    callers = [threading.Thread(target=load) for _ in range(8)]
    for caller in callers:
        caller.start()
    while outcomes.count(200) < 20:
        time.sleep(0.05)
    os.kill(server.process.pid, by)
    status = server.process.wait(timeout=60)
    stop.set()
    for caller in callers:
        caller.join(timeout=30)
        assert not caller.is_alive()
    assert set(outcomes) <= {200, 503, "gone"}
    if by == signal.SIGTERM:
        assert status == 143
    with pytest.raises(ProcessLookupError):
        os.killpg(server.process.pid, 0)  # nobody of its session is left
    again = Served(own[0], server.port)
    assert again.predict(QUESTION)[0] == 200
    again.end()


def test_a_port_that_is_taken(own: tuple[Path, list[dict]], capsys: pytest.CaptureFixture) -> None:
    from bayeslora.cli import main

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--run", str(own[0]), "--port", str(port)]) == 2
    assert "give another --port" in capsys.readouterr().err


# --- the batcher -----------------------------------------------------------------------------------------------------


@pytest.fixture
def batcher(own: tuple[Path, list[dict]]) -> Iterator[Batcher]:
    made = Batcher(Predictor.from_run(own[0], "cpu"), most=20, wait=0.2)
    yield made
    made.close()


def test_one_refusal_leaves_the_others_of_its_batch_alone(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    answer = batcher.predictor.answer
    monkeypatch.setattr(batcher.predictor, "answer", lambda asked: passes.append(len(asked)) or answer(asked))
    wrong = {"question": "?", "options": ["a", "a"]}
    futures = [batcher.submit([given], 30) for given in (QUESTION, wrong, QUESTION)]
    assert futures[0].result(30) == futures[2].result(30)
    with pytest.raises(UsageError, match="same option twice"):
        futures[1].result(30)
    assert passes == [2]


def test_a_pass_that_fails_is_tried_question_by_question(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = batcher.predictor.answer

    def fails(asked: list) -> list:
        if any("poison" in one.question.question for one in asked):
            raise RuntimeError("first line\nsecond line")
        return answer(asked)

    monkeypatch.setattr(batcher.predictor, "answer", fails)
    good, bad = (batcher.submit([given], 30) for given in (QUESTION, {**QUESTION, "question": "poison"}))
    assert good.result(30)[0].options == ("yes", "no")
    with pytest.raises(RuntimeError, match="first line") as error:
        bad.result(30)
    assert "\n" not in str(error.value)


def test_too_many_too_late_and_too_far_gone(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    late = batcher.submit([QUESTION], -1)
    with pytest.raises(BusyError, match="in time"):
        late.result(30)
    with pytest.raises(BusyError, match="20 are allowed"):
        batcher.submit([QUESTION] * 21, 30)
    asked = []
    monkeypatch.setattr(batcher.predictor, "prepare", lambda questions: asked.append(questions) or [])
    gone = batcher.submit([QUESTION], 30)
    assert gone.cancel()
    batcher.close()
    batcher._thread.join(30)
    assert not asked
    assert batcher.in_flight == 0
    with pytest.raises(BusyError, match="about to stop"):
        batcher.submit([QUESTION], 30)
