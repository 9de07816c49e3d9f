"""From shards to batches: every row belongs to its sample, and the order holds whatever happens to the workers."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mobileclip.data.augment import Policy, draw, replay
from mobileclip.data.embeddings import Reinforcement, write
from mobileclip.data.loader import Loader, Recipe, decode
from mobileclip.data.samples import BadSample, Sample, Tally
from mobileclip.data.shards import write_shard
from mobileclip.data.source import find_shards
from mobileclip.data.stream import START
from mobileclip.errors import InputError
from mobileclip.preprocess import open_image
from mobileclip.specs import PreprocessSpec
from mobileclip.tokenizer import Tokenizer

SPEC, TOKENIZER = PreprocessSpec(32), Tokenizer.clip()
VIEWS, CAPTIONS, WIDTH = 4, 3, 6
BOMB = b"P6 10000 10000 255 "
"""A PPM that claims more pixels than the limit."""


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def members(i):
    """A reinforced sample whose every teacher's row tells what it belongs to: (sample, 0 picture or 1 real or 2 synthetic, number)."""
    rng = np.random.default_rng(i)

    def rows(kind, count):
        return np.array([[i, kind, n] + [0.5] * (WIDTH - 3) for n in range(count)], np.float32)

    reinforcement = Reinforcement(
        [draw(50, 40, rng, Policy(32)) for _ in range(VIEWS)],
        {"syn_text": [f"synthetic {n} of {i}" for n in range(CAPTIONS)]},
        rows(0, VIEWS), rows(1, 1), {"syn_text": rows(2, CAPTIONS)},
    )  # fmt: skip
    return {"png": picture(i), "txt": f"real {i}".encode(), **write(reinforcement, "fp32")}, reinforcement


def ids(text):
    return TOKENIZER([text])[0].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_rows_belong_to_view_and_captions(seed):
    stored, reinforcement = members(7)
    example = decode(Sample("x", stored), Recipe(SPEC, TOKENIZER, captions="both"), (seed,))
    sample, kind, view = example.teacher_image[:3].astype(int)
    assert (sample, kind) == (7, 0)
    assert np.array_equal(example.image, replay(open_image(stored["png"]), reinforcement.param_aug[view], 32, "bilinear"))
    assert example.text == "real 7"
    assert example.teacher_real[:3].tolist() == [7, 1, 0]
    assert example.synthetic == f"synthetic {int(example.teacher_synthetic[2])} of 7"
    assert example.teacher_synthetic[:2].tolist() == [7, 2]


def test_all_views_and_captions_are_drawn():
    stored, _ = members(1)
    examples = [decode(Sample("x", stored), Recipe(SPEC, TOKENIZER, captions="both"), (seed,)) for seed in range(200)]
    pairs = {(int(e.teacher_image[2]), int(e.teacher_synthetic[2])) for e in examples}
    assert len(pairs) == VIEWS * CAPTIONS


def test_one_caption_at_random():
    """The teacher's row follows the caption that was drawn."""
    stored, _ = members(1)
    examples = [decode(Sample("x", stored), Recipe(SPEC, TOKENIZER, captions="random", mix=0.25), (seed,)) for seed in range(400)]
    for e in examples:
        assert (e.synthetic, e.teacher_synthetic) == (None, None)
        assert e.text == ("real 1" if e.teacher_real[1] == 1 else f"synthetic {int(e.teacher_real[2])} of 1")
    assert 60 < sum(e.text != "real 1" for e in examples) < 140


def test_in_turn():
    stored, _ = members(1)
    recipe = Recipe(SPEC, TOKENIZER, captions="both", in_turn=True)
    examples = [decode(Sample("x", stored), recipe, (0, epoch), epoch) for epoch in range(6)]
    assert [int(e.teacher_image[2]) for e in examples] == [0, 1, 2, 3, 0, 1]
    assert [int(e.teacher_synthetic[2]) for e in examples] == [0, 1, 2, 0, 1, 2]


def test_without_teachers():
    stored, _ = members(3)
    plain = Sample("x", {"png": stored["png"], "txt": b"real 3"})
    example = decode(plain, Recipe(SPEC, TOKENIZER, Policy(32)), (0,))
    assert (example.text, example.synthetic, example.teacher_image) == ("real 3", None, None)
    assert decode(Sample("x", stored), Recipe(SPEC, TOKENIZER, Policy(32), "synthetic"), (0,)).text.startswith("synthetic")
    for sample, recipe, reason in [
        (plain, Recipe(SPEC, TOKENIZER), "no_reinforcement"),
        (plain, Recipe(SPEC, TOKENIZER, Policy(32), "both"), "no_caption"),
        (plain, Recipe(SPEC, TOKENIZER, Policy(32), min_side=41), "too_small"),
        (Sample("x", stored | {"paug.json": b'{"param_aug": [[[0, 0, 400, 500], null]]}'}), Recipe(SPEC, TOKENIZER), "bad_reinforcement"),
    ]:
        with pytest.raises(BadSample) as e:
            decode(sample, recipe, (0,))
        assert e.value.reason == reason


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for n in range(5):
        write_shard(folder / f"{n}.tar", [(f"{i:032x}", members(i)[0]) for i in range(20 * n, 20 * n + 20)])
    return find_shards([str(folder)])


def loader(shards, **changes):
    return Loader({"shards": shards, "seed": 0, "window": 2}, Recipe(SPEC, TOKENIZER, captions="both"), batch_size=8, **changes)


def take(batches, count):
    iterator = iter(batches)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def same(a, b):
    return all(
        torch.equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a, b, strict=True)
        for name in ("image", "tokens", "synthetic_tokens", "teacher_image", "teacher_real", "teacher_synthetic")
    )


def test_batches(shards):
    batches = take(loader(shards), 25)
    seen = [int(i) for b in batches for i in b.teacher_image[:, 0]]
    assert sorted(seen[:100]) == sorted(seen[100:]) == list(range(100))
    for b in batches:
        assert b.image.shape == (8, 3, 32, 32)
        assert b.image.dtype == torch.uint8
        for row in range(8):
            sample, _, number = b.teacher_synthetic[row, :3].int().tolist()
            assert b.tokens[row].tolist() == ids(f"real {sample}")
            assert b.synthetic_tokens[row].tolist() == ids(f"synthetic {number} of {sample}")


def test_goes_on_at_any_batch(shards):
    whole = loader(shards)
    iterator, batches, places = iter(whole), [], [START]
    for _ in range(16):
        batches.append(next(iterator))
        places.append(whole.position)
    iterator.close()
    assert whole.tally.seen == 128
    for done in range(16):
        assert same(
            take(loader(shards, position=places[done]), 2), (batches + take(loader(shards, position=places[16]), 1))[done : done + 2]
        )


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_matter(shards, workers):
    assert same(take(loader(shards, workers=workers), 16), take(loader(shards), 16))


def test_a_killed_worker_is_replaced(shards):
    whole = loader(shards, workers=2)
    iterator = iter(whole)
    batches = [next(iterator) for _ in range(2)]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    batches += [next(iterator) for _ in range(14)]
    iterator.close()
    assert whole.restarts >= 1
    assert whole.tally.seen == 128
    assert same(batches, take(loader(shards), 16))


def test_signals_to_the_group_leave_workers_alone(shards):
    """As torchrun sends them, while the main process does something else; a worker that dies then is no error there either."""
    whole = loader(shards, workers=2)
    iterator = iter(whole)
    batches = [next(iterator)]
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.5)
    assert all(worker.is_alive() for worker in workers)
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].join()
    assert sum(range(10_000)) == 49_995_000  # no exception of torch's in our code
    batches += [next(iterator) for _ in range(15)]
    iterator.close()
    assert same(batches, take(loader(shards), 16))


def test_rows_of_another_width_are_bad():
    stored = members(1)[0]
    with pytest.raises(BadSample, match="rows of 6 values, where the teachers' widths add up to 7"):
        decode(Sample("x", stored), Recipe(SPEC, TOKENIZER, width=7), (0,))
    assert decode(Sample("x", stored), Recipe(SPEC, TOKENIZER, width=6), (0,)).teacher_image.shape == (6,)


def test_stored_crops_are_in_the_pixels_of_the_file():
    """MobileCLIP's generator draws them without a look at EXIF; pictures for new crops are turned upright."""
    stored = members(1)[0]
    image = open_image(stored["png"])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = io.BytesIO()
    image.save(turned, "PNG", exif=exif)
    stored["png"] = turned.getvalue()
    assert np.array_equal(
        decode(Sample("x", stored), Recipe(SPEC, TOKENIZER), (0,)).image,
        decode(Sample("x", members(1)[0]), Recipe(SPEC, TOKENIZER), (0,)).image,
    )
    upright = open_image(stored["png"])
    assert upright.size == image.size[::-1]


def test_accounting(tmp_path):
    """seen + skipped = present, exactly, at the end of an epoch."""
    good = [(f"{i:032x}", members(i)[0]) for i in range(30)]
    changes = [{"npz": b"damaged"}, {"txt": b""}, {"png": BOMB}, {"png": BOMB.replace(b"10000", b"10")}]
    bad = [("a" * 32, {"txt": b"x"}), *((f"{i:032x}", members(1)[0] | changed) for i, changed in enumerate(changes, 50))]
    write_shard(tmp_path / "0.tar", good + bad)
    data = loader(find_shards([str(tmp_path)]), max_bad=1.0)
    data.batch_size = 10
    iterator = iter(data)
    for _ in range(4):
        next(iterator)
    iterator.close()
    assert data.tally.present == data.position.epoch * 35 + data.position.offset
    assert set(data.tally.skipped) == {"no_caption", "no_reinforcement", "bad_reinforcement", "too_large", "bad_image"}


def test_too_much_is_bad(tmp_path):
    write_shard(tmp_path / "0.tar", [(f"{i:032x}", {"txt": b"x"} if i % 10 == 0 else members(1)[0]) for i in range(300)])
    with pytest.raises(InputError, match=r"samples are bad \(no_.*more than data.max_bad 1.00%; mend .*; the last one: [0-9a-f]{32}: no_"):
        take(loader(find_shards([str(tmp_path)])), 200)


def test_few_samples_are_judged_after_an_epoch(tmp_path):
    write_shard(tmp_path / "0.tar", [(f"{i:032x}", {"txt": b"x"} if i < 8 else members(1)[0]) for i in range(40)])
    data = loader(find_shards([str(tmp_path)]), max_bad=0.1)
    with pytest.raises(InputError, match=r"8 of 40 samples are bad .*; the last one: [0-9a-f]{32}: no_"):
        take(data, 5)
    assert data.tally.seen == 32
    take(loader(find_shards([str(tmp_path)]), max_bad=0.2), 20)


def test_few_samples_are_judged_when_a_run_ends_inside_an_epoch(tmp_path):
    """Its end is told by the trainer."""
    write_shard(tmp_path / "0.tar", [(f"{i:032x}", {"txt": b"x"} if i < 20 else members(1)[0]) for i in range(60)])
    data = loader(find_shards([str(tmp_path)]), max_bad=0.01)
    take(data, 2)
    data.check(Tally(99, Counter(no_image=1)))
    with pytest.raises(InputError, match=r"are bad \(no_reinforcement \d\), more than data.max_bad 1.00%.*; the last one: 0{30}.*: no_"):
        data.check(data.tally)


def test_no_good_sample_at_all(tmp_path):
    """Also where any share may be bad: it would be waited for for ever."""
    write_shard(tmp_path / "0.tar", [(f"{i:032x}", {"txt": b"x"}) for i in range(5)])
    with pytest.raises(InputError, match=r"none of \d+ samples can be used \(no_reinforcement \d+\); the last one: [0-9a-f]{32}: no_"):
        take(loader(find_shards([str(tmp_path)]), max_bad=1.0), 1)
