"""The text tower's first lesson: the words' places among the tokens, and captions and words related as the teachers relate them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from mobileclip import checkpoints
from mobileclip.data import vocabulary
from mobileclip.data.augment import Policy, draw
from mobileclip.data.embeddings import ABOUT, Reinforcement, write
from mobileclip.data.shards import write_shard
from mobileclip.data.vocabulary import Vocabulary
from mobileclip.errors import GateError, InputError, StorageError
from mobileclip.tokenizer import Tokenizer
from mobileclip.training import state
from mobileclip.training.losses import Teachers
from mobileclip.training.plan import plan
from mobileclip.training.setup import start_model
from mobileclip.training.texts import pretrain_text, read_texts, read_vocabulary, spread_words
from mobileclip.training.trainer import train
from tests.training.conftest import digests, exit_code, forked, picture, settings

WIDTHS = (6, 4)
WORDS = ("goat", "sheep", "tower", "castle", "hedgehog", "hedgehogtower", "glass")
MADE_BY = [["a", 6, "0"], ["b", 4, "1"]]
STAGE = {"texts": 64, "batch_size": 16}


def silent(step):
    pass


def rows_of(texts):
    """What two teachers say: random, but always the same of a text."""
    parts = []
    for text in texts:
        random = np.random.default_rng(list(text.encode()))
        parts.append(np.concatenate([v / np.linalg.norm(v) for v in map(random.standard_normal, WIDTHS)]))
    return np.array(parts, np.float32)


@pytest.fixture(scope="module")
def reinforced(tmp_path_factory):
    """16 samples with a real and two synthetic captions each, one of them in all; one sample is bad; and a vocabulary."""
    folder = tmp_path_factory.mktemp("reinforced")

    def sample(i):
        synthetic = [f"part number {i}", "a photograph"]
        params = [draw(80, 80, np.random.default_rng(i), Policy(64))]
        rows = {"syn_text": rows_of(synthetic)}
        stored = Reinforcement(params, {"syn_text": synthetic}, rows_of([f"image {i}"]), rows_of([f"part {i}"]), rows)
        return {"png": picture(i), "txt": f"part {i}".encode(), **write(stored, "fp32")}

    samples = [(f"{i:032x}", sample(i)) for i in range(16)]
    samples[3][1]["npz"] = b"not numpy's"
    write_shard(folder / "00000.tar", samples)
    vocabulary.write(folder / vocabulary.NAME, Vocabulary(list(WORDS), rows_of(WORDS), MADE_BY))
    return folder


@pytest.fixture
def captions_alone(reinforced, tmp_path):
    """The shard without the vocabulary."""
    (tmp_path / "00000.tar").write_bytes((reinforced / "00000.tar").read_bytes())
    return tmp_path


def config_of(folder, **changes):
    teachers = [{"name": name, "width": width, "scale": scale} for name, width, scale in zip("ab", WIDTHS, (30, 5), strict=True)]
    value = {
        "data": {"shards": [str(folder)], "workers": 0, "augmentation": "stored", "captions": "both", "max_bad": 0.5},
        "loss": {"distillation": 0.5, "teachers": teachers}, "text_pretraining": STAGE,
    }  # fmt: skip
    return settings(folder, **value | changes)


def with_data(folder, **changes):
    return config_of(folder, data=config_of(folder).data.model_dump() | changes)


@pytest.fixture(scope="module")
def whole(reinforced, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(config_of(reinforced), folder, progress=silent)
    return folder


def test_texts_are_all_captions_with_their_rows(reinforced):
    found, tally = read_texts(config_of(reinforced))
    expected = {t for i in range(16) if i != 3 for t in (f"part {i}", f"part number {i}")} | {"a photograph"}
    assert found.keys() == expected
    np.testing.assert_array_equal(np.stack([found[t] for t in sorted(expected)]), rows_of(sorted(expected)))
    assert (tally.seen, dict(tally.skipped)) == (15, {"bad_reinforcement": 1})
    found, tally = read_texts(with_data(reinforced, synthetic_keys="^none$", max_bad=1))
    assert (len(found), tally.seen) == (0, 0)  # such samples are bad in the run, too


def test_words_start_at_the_teachers_principal_components(reinforced):
    config = config_of(reinforced)
    clip, before = start_model(config), start_model(config).text.token_embedding.weight.detach()
    words = read_vocabulary(config)
    spread_words(clip, words, Teachers(WIDTHS, (30.0, 5.0)))
    after = clip.text.token_embedding.weight.detach()
    ids = torch.from_numpy(np.asarray(Tokenizer.clip(4)(list(WORDS)), np.int64))
    single = [i for i, row in enumerate(ids) if row[2] == 49407]
    assert 4 <= len(single) < len(WORDS)
    changed = (before != after).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(ids[single, 1].tolist())
    rows = rows_of(WORDS)[single] * np.repeat((30, 5), WIDTHS)
    rows = rows - rows.mean(0)
    table = after[ids[single, 1]]
    wide = sum(WIDTHS)
    np.testing.assert_array_equal(table[:, wide:], before[ids[single, 1]][:, wide:])  # the tower is wider than the teachers
    spread = table[:, :wide].numpy()
    factor = float(before.std()) / np.std(rows @ np.linalg.svd(rows)[2].T, ddof=1)
    np.testing.assert_allclose(spread @ spread.T, factor**2 * rows @ rows.T, atol=1e-6)
    assert spread.var(0)[0] == max(spread.var(0))


def test_the_text_tower_alone_is_taught(reinforced, tmp_path):
    config = config_of(reinforced, text_pretraining={"texts": 3200, "batch_size": 32})
    told = []
    clip, start = start_model(config), start_model(config)
    pretrain_text(clip, config, tmp_path / "first", told.append)
    for name, tensor in clip.state_dict().items():
        if not name.startswith("text."):
            assert torch.equal(tensor, start.state_dict()[name]), name
    assert all(p.requires_grad for p in clip.parameters())
    left_out = "1 of 16 samples left out (bad_reinforcement 1)"
    assert told[0] == f"text tower: 38 texts, 7 of them words of the vocabulary; {left_out}"
    divergences = [float(line.partition("divergence ")[2].partition(",")[0]) for line in told[1:]]
    assert len(divergences) == 20
    assert divergences[-1] < 0.75 * divergences[0]
    again = start_model(config)
    pretrain_text(again, config, tmp_path / "second", silent)
    assert all(torch.equal(a, b) for a, b in zip(clip.state_dict().values(), again.state_dict().values(), strict=True))


def test_without_a_vocabulary_the_captions_are_taught(captions_alone):
    config = config_of(captions_alone)
    assert read_vocabulary(config) is None
    clip = start_model(config)
    pretrain_text(clip, config, captions_alone / "run", silent)
    assert not torch.equal(clip.text.text_projection, start_model(config).text.text_projection)


def test_weights_to_start_from_keep_their_tokens(reinforced, tmp_path):
    plain = config_of(reinforced, text_pretraining=None)
    train(plain, tmp_path / "first", progress=silent)
    config = config_of(
        reinforced, init=str(tmp_path / "first/model.safetensors"), text_pretraining={"texts": 4, "batch_size": 4, "lr": 1e-9}
    )
    clip = start_model(config)
    before = clip.text.token_embedding.weight.detach().clone()
    pretrain_text(clip, config, tmp_path / "second", silent)
    torch.testing.assert_close(clip.text.token_embedding.weight, before, atol=1e-6, rtol=0)


def test_it_decides_the_weights(reinforced, whole, tmp_path):
    train(config_of(reinforced, text_pretraining=None), tmp_path, progress=silent)
    assert digests(tmp_path) != digests(whole)


def killed(config, folder, moment):
    """Train in a process of its own that kills itself at a moment."""
    save = state.save

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(folder, step, *others):
        if step == 0 and moment == "before the first state":
            die()
        path = save(folder, step, *others)
        if step == 0 and moment == "behind the first state":
            die()
        return path

    def run():
        state.save = saving
        train(config, folder, progress=lambda told: die() if told.startswith(moment) else None)

    assert exit_code(forked(run)) == -signal.SIGKILL


@pytest.mark.trains_in_forks
@pytest.mark.parametrize(
    ("save_every", "moment", "texts", "saved"),
    [
        (2, "text tower: step 1 of 4", [], []), (2, "text tower: step 3 of 4", [2], []), (1000, "before the first state", [4], []),
        (2, "behind the first state", [2, 4], [0]), (2, "step 3 of 6", [], [0, 2]),
    ],
)  # fmt: skip
def test_killed(reinforced, whole, tmp_path, save_every, moment, texts, saved):
    """In the text tower's lesson and behind it: the run that goes on does no more than it must, and ends with the same bytes."""
    torch.set_num_threads(1)
    killed(config_of(reinforced, save_every=save_every), tmp_path, moment)
    assert (state.saved_steps(tmp_path, "texts"), state.saved_steps(tmp_path)) == (texts, saved)
    told = []
    train(config_of(reinforced), tmp_path, progress=told.append)
    assert any(line.startswith("text tower") for line in told) != bool(saved)
    going_on = [line for line in told if line.startswith("text tower: going on")]
    assert going_on == ([f"text tower: going on from step {texts[-1]} of 4"] if texts and not saved else [])
    assert digests(tmp_path) == digests(whole)
    assert not list(tmp_path.glob(".mobileclip-tmp-*"))
    assert not state.saved_steps(tmp_path, "texts"), "they have served"


@pytest.mark.parametrize(("met", "stage", "saved"), [(1, "texts", [2]), (4, "state", [0, 1])])
def test_interrupted_in_the_lesson(reinforced, whole, tmp_path, met, stage, saved):
    """Ctrl-C saves the next step, also where that is one of the run proper, and the run goes on behind it."""
    torch.set_num_threads(1)
    told, folder = [], tmp_path / "run"

    def interrupt(step):
        told.append(step)
        if step.startswith(f"text tower: step {met} of 4"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config_of(reinforced), folder, progress=interrupt)
    assert state.saved_steps(folder, stage) == saved
    assert told[-1] == f"saved {state.path_of(folder, saved[-1], stage)}; run the same command to go on"
    with pytest.raises(InputError, match=r"another config \(seed: 0 before, 1 now\)"):
        train(config_of(reinforced, seed=1), folder, progress=silent)
    with pytest.raises(InputError, match=r"another config \(text_pretraining"):
        train(config_of(reinforced, text_pretraining=None), folder, progress=silent)
    assert state.saved_steps(folder, stage) == saved
    train(config_of(reinforced), folder, progress=silent)
    assert digests(folder) == digests(whole)


def test_a_lesson_of_other_texts_is_not_gone_on_with(reinforced, captions_alone, tmp_path):
    config = config_of(captions_alone)
    pretrain_text(start_model(config), config, tmp_path / "run", silent)
    (captions_alone / vocabulary.NAME).write_bytes((reinforced / vocabulary.NAME).read_bytes())
    with pytest.raises(InputError, match="the texts of the data are others than then; put them back"):
        train(config, tmp_path / "run", progress=silent)


@pytest.mark.slow
def test_two_processes_are_taught_as_one(reinforced, tmp_path):
    """Both through torchrun; BatchNorm's batch is a process's, so that the weights are near and not equal."""
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(config_of(reinforced, schedule={"samples": 4, "warmup_steps": 0}).model_dump(mode="json")))
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "mobileclip"]
        run = [*command, "train", str(config), "-o", str(tmp_path / str(processes))]
        done = subprocess.run(run, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("text tower: step 4 of 4") == 1
    one, two = (checkpoints.load(tmp_path / n / "model.safetensors").state["text.text_projection"] for n in "12")
    start = start_model(config_of(reinforced)).text.text_projection.detach()
    assert (one - two).norm() < 0.5 * (one - start).norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_pretraining": {"texts": 64, "batch_size": 5}}, "text_pretraining.batch_size: 5 does not divide by 2 x 1 processes"),
        (
            {"loss": {"distillation": 0.5, "teachers": [{"name": "a", "width": 7}]}},
            r"loss.teachers: a \(7\), but .*vocabulary.safetensors is by a \(6\), b \(4\); name them so, or remove it",
        ),
        (
            {"loss": {"distillation": 0.5, "teachers": [{"name": "b", "width": 6}, {"name": "a", "width": 4}]}},
            r"loss.teachers: b \(6\), a \(4\), but ",
        ),
    ],
)
def test_what_does_not_fit(reinforced, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(config_of(reinforced, **changes), tmp_path, progress=silent)
    assert not state.saved_steps(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {}}, "text_pretraining needs them, with names, widths and scales"),
        ({"loss": {}, "data": {"shards": ["x"]}}, "text_pretraining needs `stored` here"),
        ({"freeze": ["text"]}, "keeps the text tower as it is, and text_pretraining teaches it"),
        ({"text_pretraining": {"texts": 4, "batch_size": 3}}, "greater than or equal to 4"),
    ],
)
def test_configs_that_make_no_sense(reinforced, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(reinforced, **changes)


def test_a_loss_that_is_not_finite(reinforced, tmp_path):
    config = config_of(reinforced, text_pretraining=STAGE | {"lr": 1e30, "texts": 640}, optimizer={"max_norm": None})
    with pytest.raises(
        GateError, match=r"no longer finite at step \d+ of text_pretraining; check the data, or start in another folder with a lower"
    ):
        train(config, tmp_path, progress=silent)


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"", lambda data: data.replace(b"goat", b"gl\x00t")])
def test_a_damaged_vocabulary(reinforced, tmp_path, damage):
    path = tmp_path / vocabulary.NAME
    path.write_bytes(damage((reinforced / vocabulary.NAME).read_bytes()))
    with pytest.raises(InputError, match=r"vocabulary.safetensors: is damaged; remove it, `mobileclip reinforce` makes it again"):
        vocabulary.read(path)


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["a", "a"], rows_of(["a", "b"])), (["a"], rows_of(["a", "b"])), (["a"], rows_of(["a"]) * np.nan), (["a"], rows_of(["a"]) * 3e38),
        (["a"], rows_of(["a"])[0]), ([], np.zeros((0, 0))), (["\ud800"], rows_of(["a"])), ([1], rows_of(["a"])), ("a", rows_of(["a"])[:0]),
        ("ab", rows_of(["a", "b"])), ({"a": 1, "b": 2}, rows_of(["a", "b"])), (["a"], rows_of(["a"])[:, 1:]),
    ],
)  # fmt: skip
def test_a_vocabulary_that_does_not_fit_together(tmp_path, words, rows):
    vocabulary.write(tmp_path / "v.safetensors", Vocabulary(words, rows, MADE_BY))
    with pytest.raises(InputError, match="is damaged; remove it"):
        vocabulary.read(tmp_path / "v.safetensors")


@pytest.mark.parametrize("teachers", [{"abc": 1}, "abc", ["abc"], [{"a": 1, "b": 2, "c": 3}], [["a", 10]], [["a", "10", "0"]], [None]])
def test_a_vocabulary_of_no_teachers(tmp_path, teachers):
    vocabulary.write(tmp_path / "v.safetensors", Vocabulary(["a"], rows_of(["a"]), teachers))
    with pytest.raises(InputError, match="is damaged; remove it"):
        vocabulary.read(tmp_path / "v.safetensors")


def test_a_vocabulary_of_numbers_that_numpy_lacks(tmp_path):
    safetensors.torch.save_file({"text_emb": torch.ones(1, 2).bfloat16()}, tmp_path / "v", {"about": '{"words": ["a"], "teachers": []}'})
    with pytest.raises(InputError, match="is damaged; remove it"):
        vocabulary.read(tmp_path / "v")


def test_equal_vocabularies_are_equal_bytes(tmp_path):
    for name in "ab":
        vocabulary.write(tmp_path / name, Vocabulary(list(WORDS), rows_of(WORDS), MADE_BY))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_vocabulary_by_other_teachers(reinforced, tmp_path):
    for path in reinforced.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    about = {"teachers": [{"name": "a", "width": 6, "weights": "0"}, {"name": "b", "width": 4, "weights": "1"}]}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    assert read_vocabulary(with_data(tmp_path, shards=[f"{tmp_path}/*.tar"]))
    about["teachers"][1]["weights"] = "2"
    (tmp_path / ABOUT).write_text(json.dumps(about))
    with pytest.raises(InputError, match="is not by the shards' teachers"):
        train(config_of(tmp_path), tmp_path / "run", progress=silent)


@pytest.mark.parametrize("words", [["goat"], ["hedgehogtower"], ["goat", "sheep"]])
def test_words_without_a_direction_change_nothing(reinforced, words):
    config = config_of(reinforced)
    clip = start_model(config)
    before = clip.text.token_embedding.weight.detach().clone()
    spread_words(clip, Vocabulary(words, rows_of(["one"] * len(words)), MADE_BY), Teachers(WIDTHS, (30.0, 5.0)))
    assert torch.equal(clip.text.token_embedding.weight, before)


def test_bad_samples_are_left_out(reinforced, captions_alone):
    """And counted, as in the run proper: a shard that is none, and rows of another width."""
    (captions_alone / "00001.tar").write_bytes(b"no tar")
    ones = Reinforcement([draw(80, 80, np.random.default_rng(0), Policy(64))], {}, *(np.ones((1, 7), np.float32),) * 2, {})
    write_shard(captions_alone / "00002.tar", [("0" * 32, {"png": picture(0), "txt": b"odd", **write(ones, "fp32")})])
    found, tally = read_texts(config_of(captions_alone))
    assert found.keys() == read_texts(config_of(reinforced))[0].keys()
    assert (tally.seen, dict(tally.skipped)) == (15, {"bad_reinforcement": 2, "damaged_shard": 1})


@pytest.mark.parametrize(("shards", "at"), [(1, 16), (100, 1012)])
def test_too_many_bad_samples(captions_alone, shards, at):
    """As soon as that can be told: one of 16 is bad, the fourth of each shard."""
    (shard,) = captions_alone.glob("*.tar")
    for n in range(1, shards):
        shutil.copy(shard, captions_alone / f"{n:05d}.tar")
    with pytest.raises(InputError, match=rf"of {at:,} samples are bad \(bad_reinforcement \d+\), more than data.max_bad 1.00%.*0003: bad_"):
        read_texts(with_data(captions_alone, shards=[str(captions_alone)], max_bad=0.01))


def test_a_shard_that_cannot_be_fetched(captions_alone):
    """It may be there when the run is done again, which would then have other weights."""
    with pytest.raises(StorageError, match="pipe:exit 3: the command failed with exit code 3"):
        read_texts(with_data(captions_alone, shards=[str(captions_alone), "pipe:exit 3"]))
    command = f"pipe:cat {captions_alone}/00000.tar"
    assert len(read_texts(with_data(captions_alone, shards=[command]))[0]) == 31


def test_data_without_texts(tmp_path):
    write_shard(tmp_path / "00000.tar", [])
    with pytest.raises(InputError, match="the data has no texts with teachers' embeddings; reinforce it"):
        train(config_of(tmp_path), tmp_path / "run", progress=silent)


def test_texts_take_no_more_memory_than_their_rows(reinforced):
    assert all(row.base is None and row.nbytes == 4 * sum(WIDTHS) for row in read_texts(config_of(reinforced))[0].values())


def test_the_dry_run_counts_it(reinforced):
    with_it = plan(config_of(reinforced, text_pretraining=STAGE | {"texts": 49}))  # the last batch is a whole one, too
    without = plan(config_of(reinforced, text_pretraining=None))
    assert (with_it["text_pretraining"]["texts"], with_it["text_pretraining"]["steps"]) == (64, 4)
    assert 0 < with_it["text_pretraining"]["activations_bytes"] < with_it["memory"]["activations_bytes"] * 16 / 4
    with pytest.raises(InputError, match="batch_size: 5 does not divide"):
        plan(config_of(reinforced, text_pretraining=STAGE | {"batch_size": 5}))
    assert 0 < with_it["text_pretraining"]["flops"] / 64 < with_it["cost"]["flops_per_sample"] / 2
    assert "text_pretraining" not in without
    assert without["cost"]["flops"] == with_it["cost"]["flops"]


@pytest.mark.parametrize(("keep", "kept"), [(1, [7]), (3, [5, 6, 7]), (5, [3, 4, 5, 6, 7])])
def test_the_last_states_are_kept(tmp_path, keep, kept):
    for step in range(8):
        state.save(tmp_path, step, {}, keep)
        assert state.saved_steps(tmp_path) == [s for s in range(8) if step - keep < s <= step]
    assert state.saved_steps(tmp_path) == kept
    assert not state.saved_steps(tmp_path, "texts")
