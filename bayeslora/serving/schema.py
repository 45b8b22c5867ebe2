"""What the server is asked and what it answers, as pydantic models: the source of its OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MOST_QUESTIONS = 64
LONGEST = 20_000  # characters of a text
MOST_OPTIONS = 256
Text = Annotated[str, Field(max_length=LONGEST)]


class Named(BaseModel):
    """What may stand beside whatever is asked."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(max_length=200)] | None = Field(default=None, description="Comes back with the answer.")


class AskedQuestion(Named):
    """A question to answer."""

    question: Text = Field(description="What is asked.", examples=["Which is larger?"])
    options: Annotated[list[Text], Field(min_length=2, max_length=MOST_OPTIONS)] | None = Field(
        default=None,
        description="What to choose from; may be left out where the run has the same options for every question.",
        examples=[["a mouse", "a house"]],
    )
    context: Text = Field(default="", description="A passage in front of the question.")


class AskedSentence(Named):
    """A sentence to classify, for a run that was trained on sentences; the options are the run's classes."""

    sentence: Text = Field(description="The sentence.", examples=["where is my card"])


class AskedSentences(Named):
    """A pair of sentences to classify, for a run that was trained on pairs; the options are the run's classes."""

    sentence1: Text = Field(description="The first sentence.", examples=["A man plays a guitar."])
    sentence2: Text = Field(description="The second.", examples=["Somebody makes music."])


def shape(asked: Any) -> str:
    """Which of the three shapes something has, by its fields: what matches none is told what a question lacks."""
    fields = asked if isinstance(asked, dict) else vars(asked) if isinstance(asked, Named) else ()
    return next((name for name in ("sentence", "sentence1") if name in fields), "question")


Asked = Annotated[
    Annotated[AskedQuestion, Tag("question")]
    | Annotated[AskedSentence, Tag("sentence")]
    | Annotated[AskedSentences, Tag("sentence1")],
    Discriminator(shape),
]


class Request(BaseModel):
    """One question or several; they are answered together."""

    model_config = ConfigDict(extra="forbid")

    questions: Annotated[list[Asked], Field(min_length=1, max_length=MOST_QUESTIONS)]


class GivenAnswer(BaseModel):
    """An answer: probabilities, uncertainty, and what the run's decision rule makes of them."""

    id: str = Field(description="The question's id; its place in the request where it had none.")
    options: list[str] = Field(description="What there was to choose from.")
    probs: list[float] = Field(description="Probability of each option.")
    choice: int = Field(description="Index of the most probable option.")
    text: str = Field(description="Its text.")
    confidence: float = Field(description="Its probability.")
    total: float = Field(description="Uncertainty: entropy of the probabilities, in nats.")
    aleatoric: float = Field(description="The part of it on which the sampled functions agree, in nats.")
    epistemic: float = Field(description="The part on which they differ, in nats.")
    prediction_set: list[int] | None = Field(description="Options in the prediction set; null without a decision rule.")
    abstain: bool | None = Field(description="Whether a person should answer; null without a decision rule.")
    reason: str = Field(description="Why; empty where it is answered.")
    cut: bool = Field(description="Whether the front of its text was left out since it was too long.")


class Response(BaseModel):
    """The answers, in the order of the questions."""

    answers: list[GivenAnswer]


class Health(BaseModel):
    """Whether questions are answered."""

    status: str
    method: str
    in_flight: int = Field(description="Questions that wait or are being answered.")
    decides: bool = Field(description="Whether the run has a decision rule, so that it may abstain.")
    options: list[str] | None = Field(description="The options of every question; null where each has its own.")


class Refusal(BaseModel):
    """Why a request was not answered, in one line."""

    error: str
