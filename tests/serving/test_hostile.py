"""Whatever is sent, the server answers: rightly, or with a refusal of one line that is the sender's to mend."""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayeslora.serving.batcher import Batcher
from bayeslora.serving.predictor import Predictor

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from bayeslora.serving.server import Limits, application

QUESTION = {"question": "Is 4 even?", "options": ["yes", "no"]}
REFUSALS = {400, 404, 405, 413, 422}
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(["", "\0", "\ud800", "</s>", "<s>", "a\nb\u2028c", "٣"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**4000, -1, 1e400])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["question", "options", "context", "id", "sentence", "sentence1", "sentence2", "label", "path"]
)
NEARLY = st.fixed_dictionaries(
    {"question": TEXTS}, optional={"options": st.lists(TEXTS, max_size=5), "context": TEXTS, "id": TEXTS}
)
SPOILT = st.builds(lambda asked, more: {**asked, **more}, NEARLY, st.dictionaries(FIELDS | TEXTS, VALUES, max_size=2))


class Asked:
    """A server in this process, and a predictor that knows its answers."""

    def __init__(self, client: TestClient, batcher: Batcher, predictor: Predictor) -> None:
        self.client, self.batcher, self.predictor = client, batcher, predictor

    def send(
        self, body: bytes | Any, path: str = "/predict", method: str = "POST", kind: str = "application/json"
    ) -> Any:
        """What comes back, which is a right answer or a refusal in one line."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = self.client.request(method, path, content=content, headers={"content-type": kind})
        assert found.status_code == 200 or found.status_code in REFUSALS, (found.status_code, found.text)
        if found.status_code == 200 or method == "HEAD":
            return found
        assert list(found.json()) == ["error"]
        assert 0 < len(found.json()["error"]) < 600
        assert len(found.json()["error"].splitlines()) == 1
        return found

    def right(self, found: Any, questions: list[dict]) -> None:
        """The answers are what the predictor says of each question by itself."""
        answers = found.json()["answers"]
        assert len(answers) == len(questions)
        for place, (answer, asked) in enumerate(zip(answers, questions, strict=True)):
            own = self.predictor(asked)
            assert answer["probs"] == pytest.approx(own.probs, abs=1e-5)
            assert answer["options"] == list(own.options)
            assert answer["id"] == (str(place) if asked.get("id") is None else asked["id"])


@pytest.fixture(scope="module")
def asked(own: tuple[Path, list[dict]]) -> Iterator[Asked]:
    batcher = Batcher(Predictor.from_run(own[0], "cpu"), wait=0)
    with TestClient(application(batcher, Limits(body=1 << 16)), raise_server_exceptions=False) as client:
        found = Asked(client, batcher, Predictor.from_run(own[0], "cpu"))
        yield found
        assert batcher.alive
        assert batcher.in_flight == 0
        found.right(found.send({"questions": [QUESTION]}), [QUESTION])


@FEW
@given(body=st.binary(max_size=200) | st.text(string.printable, max_size=80).map(str.encode))
def test_bytes(asked: Asked, body: bytes) -> None:
    assert asked.send(body).status_code != 200


@FEW
@given(body=VALUES | st.fixed_dictionaries({"questions": VALUES}))
def test_values(asked: Asked, body: Any) -> None:
    assert asked.send(body).status_code != 200


@pytest.mark.parametrize("one", [NEARLY, SPOILT], ids=["nearly", "spoilt"])
@FEW
@given(data=st.data())
def test_questions(asked: Asked, one: st.SearchStrategy[dict], data: st.DataObject) -> None:
    questions = data.draw(st.lists(one, min_size=1, max_size=3))
    found = asked.send({"questions": questions})
    if found.status_code == 200:
        asked.right(found, questions)


@FEW
@given(
    path=st.sampled_from(["/predict", "/health", "/", "/docs", "/openapi.json"])
    | st.text(string.ascii_letters + string.digits + "/.%~_-", max_size=30).map("/".__add__),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"]),
    kind=st.sampled_from(
        ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
    ),
)
def test_other_places_and_ways(asked: Asked, path: str, method: str, kind: str) -> None:
    asked.send({"questions": [QUESTION]}, path, method, kind)


@pytest.mark.parametrize(
    "body",
    [b"[" * 60_000, b'{"a":' * 5000, b"1" * 5000, b" " * (1 << 17), b'{"questions": ' + b"[[" * 1000, b"\xff\xfe\x00"],
    ids=["brackets", "objects", "digits", "large", "unclosed", "utf-16"],
)
def test_deep_long_and_large(asked: Asked, body: bytes) -> None:
    assert asked.send(body).status_code != 200


@pytest.mark.parametrize("text", ["\ud800", "x" * 20_000, "\0" * 20_000, "\u2028" * 20_000, "</s>" * 5000])
def test_long_texts_come_back_neither_whole_nor_in_lines(asked: Asked, text: str) -> None:
    for question in ({"question": "?", "options": [text, text]}, {"question": "?", text: 1}, {"question": text}):
        asked.send({"questions": [question]})


def test_sentences_are_described_and_reach_the_predictor(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    described = asked.client.get("/openapi.json").json()["components"]["schemas"]
    assert {"AskedQuestion", "AskedSentence", "AskedSentences"} <= set(described)
    assert described["AskedSentences"]["required"] == ["sentence1", "sentence2"]
    assert "as 'question'" in asked.send({"questions": [{"sentence": "send it"}]}).json()["error"]  # no such run
    refused = asked.send({"questions": [{"sentence": "send it", "options": ["a", "b"]}]})
    assert refused.json()["error"].startswith("questions.0.options: ")
    asked_for: list[dict] = []

    def prompting(row: dict, fallback_id: str) -> Any:
        asked_for.append(row)
        return asked.predictor.question("Is 4 even?", fallback_id=fallback_id)

    monkeypatch.setattr(asked.batcher, "predictor", SimpleNamespace(**_parts(asked.batcher.predictor, prompting)))
    rows = [{"sentence": "send it"}, {"sentence1": "send it", "sentence2": "all", "id": "7"}]
    assert asked.send({"questions": rows}).status_code == 200
    assert asked_for == rows


def _parts(predictor: Predictor, question: Any) -> dict[str, Any]:
    return {"kept": predictor.kept, "prepare": predictor.prepare, "answer": predictor.answer, "question": question}
