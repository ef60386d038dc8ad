"""Real models: token for token what llama2.c's run.c printed."""

import json
from pathlib import Path

import pytest

from llamatui.app.engine import Limits, Session
from llamatui.app.model import load_model
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.backends.registry import BUILTIN

FP32 = [name for name in BUILTIN if name != "q8_0"]

pytestmark = pytest.mark.real


@pytest.mark.parametrize("backend", FP32)
@pytest.mark.parametrize("model", ["stories260K.bin", "stories260K_v1.bin"])
def test_vectors(backend: str, model: str, real_data: Path) -> None:
    loaded = load_model(real_data / "models" / model, backend=backend)
    for case in json.loads((real_data / "vectors" / "llama2c_stories260K.json").read_text()):
        ids = loaded.tokenizer.encode(case["prompt"] or "", bos=True)
        sampler = Sampler(Sampling(case["temperature"], case["top_p"], seed=case["seed"]))
        limits = Limits(case["steps"] - len(ids) + 1, loaded.stop_ids)
        generation = Session(loaded.backend).start(ids, sampler, limits)
        found = ids + [record.id for record in generation]
        # run.c's list ends with the BOS that ended its text.
        assert found + [1] * (generation.finish_reason == "eos") == case["ids"], case


def test_the_story_that_llama2c_documents(real_data: Path) -> None:
    loaded = load_model(real_data / "models" / "stories260K.bin")
    ids = loaded.tokenizer.encode("", bos=True)
    generation = Session(loaded.backend).start(ids, Sampler(Sampling(0.0)), Limits(200, loaded.stop_ids))
    text = loaded.tokenizer.decode([record.id for record in generation], after=1)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
