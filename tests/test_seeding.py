"""Streams by name."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fedssl.seeding import derive, generator, torch_stream, uniforms


def test_the_same_name_gives_the_same_stream_and_another_name_another() -> None:
    assert generator(1, "a", 2).random() == generator(1, "a", 2).random()
    assert len({derive(1, "a", 2), derive(1, "a", 3), derive(2, "a", 2), derive(1, "a", "2"), derive(1, "a2")}) == 5


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert (
        derive(7, "round", 3)
        == int.from_bytes(__import__("hashlib").sha256(b"(7, 'round', 3)").digest()[:8], "little") >> 1
    )


def test_the_global_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    with torch_stream(0, "init"):
        first = torch.rand(3)
    with torch_stream(0, "init"):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_uniforms_depend_on_the_row_and_the_column_alone() -> None:
    rows = np.array([7, 3, 1_000_000])
    numbers = uniforms(5, "augment", 0, rows=rows, columns=4)
    assert np.array_equal(uniforms(5, "augment", 0, rows=rows[1:2], columns=9)[0, :4], numbers[1])
    assert np.array_equal(uniforms(5, "augment", 0, rows=rows[::-1].copy(), columns=4), numbers[::-1])
    for other in (uniforms(6, "augment", 0, rows=rows, columns=4), uniforms(5, "augment", 1, rows=rows, columns=4)):
        assert not np.isin(other, numbers).any()


def test_uniforms_are_uniform_and_independent() -> None:
    numbers = uniforms(0, "test", rows=np.arange(20_000), columns=5)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square with 99 degrees of freedom: 1 in 10,000 is above
    pairs = np.column_stack([numbers, np.roll(numbers[:, 0], 1)])  # columns, and a row with the one before it
    assert np.abs(np.corrcoef(pairs, rowvar=False) - np.eye(6)).max() < 0.03


def test_two_threads_do_not_draw_from_each_others_streams() -> None:
    def numbers(name: str, length: int) -> list[float]:
        with torch_stream(0, name):
            return [float(torch.rand(())) for _ in range(length)]

    alone = {name: numbers(name, 2000) for name in ("a", "b")}
    with ThreadPoolExecutor(2) as pool:
        together = {name: pool.submit(numbers, name, 2000) for name in ("a", "b")}
    assert {name: future.result() for name, future in together.items()} == alone
