"""Streams by name."""

import torch

from fedssl.seeding import derive, generator, torch_stream


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
